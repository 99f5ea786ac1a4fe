"""Plain torch `embedding`."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.quant.tensor import QuantTensor


def embedding(ids: Tensor, table: Tensor | QuantTensor, *, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """See zoo.kernels.embedding."""
    rows = table.rows(ids) if isinstance(table, QuantTensor) else table.index_select(0, ids)
    rows = rows.to(dtype)
    return rows if scale == 1.0 else rows * scale
