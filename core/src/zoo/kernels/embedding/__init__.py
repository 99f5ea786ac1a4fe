"""Rows of a table by token id."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.registry import implementation
from zoo.quant.tensor import QuantTensor

__all__ = ["embedding"]


def embedding(ids: Tensor, table: Tensor | QuantTensor, *, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Look tokens up, unpacking only their rows.

    ids: int32 [T]; table: [V, D] of any type. Returns [T, D] in `dtype`, multiplied by `scale` (Gemma: sqrt(D)).
    """
    result: Tensor = implementation("embedding", ids.device.type)(ids, table, dtype=dtype, scale=scale)
    return result
