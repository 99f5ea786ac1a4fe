"""Native `moe`: tokens are grouped by expert, and only chosen experts are read."""

from __future__ import annotations

import ctypes
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from zoo.kernels.glu import Activation
from zoo.kernels.moe import reference
from zoo.kernels.native import call, structs
from zoo.quant.experts import ExpertWeights

# The addresses of hundreds of matrices, once per layer.
_TABLES: WeakKeyDictionary[ExpertWeights, ctypes.Array[structs.Weight] | None] = WeakKeyDictionary()


def moe(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate: ExpertWeights,
    up: ExpertWeights,
    down: ExpertWeights,
    *,
    act: Activation = "silu",
    add: Tensor | None = None,
) -> Tensor:
    """See zoo.kernels.moe."""
    tables = [_table(experts) for experts in (gate, up, down)] if call.matches(x, weights, add) else [None]
    fits = indices.dtype == torch.int32 and indices.is_contiguous() and weights.is_contiguous() and x.numel()
    if any(table is None for table in tables) or act not in structs.ACTS or not fits:
        return reference.moe(x, indices, weights, gate, up, down, act=act, add=add)
    flat, added = call.rows(x), None if add is None else call.rows(add)
    y = call.empty((x.shape[0], down.shape[1]))
    addresses = (ctypes.addressof(table) for table in tables if table is not None)
    op = structs.Moe(
        structs.MOE,
        structs.ACTS[act],
        flat.data_ptr(),
        len(flat),
        flat.stride(0),
        indices.data_ptr(),
        weights.data_ptr(),
        indices.shape[1],
        len(gate),
        *addresses,
        call.address(added),
        0 if added is None else added.stride(0),
        y.data_ptr(),
    )
    call.run(op, tables, gate, up, down)
    return y


def _table(experts: ExpertWeights) -> ctypes.Array[structs.Weight] | None:
    if experts not in _TABLES:
        found = call.weights(experts.views)
        # One kind of activation for all of them: a file that mixes packed and dense experts goes to the reference.
        packed = None if found is None else {weight.type in _DENSE for weight in found}
        usable = found is not None and packed is not None and len(packed) == 1
        _TABLES[experts] = (structs.Weight * len(found))(*found) if found is not None and usable else None
    return _TABLES[experts]


_DENSE = frozenset({structs.F32, structs.F16, structs.BF16, structs.FP8_E4M3})
