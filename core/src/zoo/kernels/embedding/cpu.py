"""Native `embedding`: unpacks the rows that are asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.embedding import reference
from zoo.kernels.native import call, structs
from zoo.quant.tensor import QuantTensor


def embedding(ids: Tensor, table: Tensor | QuantTensor, *, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """See zoo.kernels.embedding."""
    found = call.weight(table)
    known = found is not None and found.type != structs.FP8_E4M3 and ids.dtype == torch.int32 and ids.is_contiguous()
    if not known or dtype != torch.float32 or not ids.numel():
        return reference.embedding(ids, table, dtype=dtype, scale=scale)
    y = call.empty((*ids.shape, table.shape[1]))
    op = structs.Embedding(structs.EMBEDDING, scale, ids.data_ptr(), ids.numel(), found, y.data_ptr())
    call.run(op, ids, table)
    return y
