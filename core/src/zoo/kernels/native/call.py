"""What the backends of the ops share: outputs, addresses, weights, and the call itself."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.formats.ggml import GGML_BY_NAME
from zoo.kernels.native import structs
from zoo.kernels.native.pool import session
from zoo.quant import tiles
from zoo.quant.tensor import QuantTensor

_DENSE = {torch.float32: structs.F32, torch.float16: structs.F16, torch.bfloat16: structs.BF16}


def run(op: ctypes.Structure, *kept: Any) -> None:
    """Run an op here and now, unless it is only rehearsed.

    `kept`: tensors and arrays that its addresses point to and that are not its outputs.
    """
    current = session()
    recorder = current.recorder
    if recorder is None or recorder.rehearsal is None:
        current.pool.execute((ctypes.c_void_p * 1)(ctypes.addressof(op)))
    if recorder is not None:
        recorder.add(op, kept)


def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """An output."""
    recorder = session().recorder
    return torch.empty(shape, dtype=dtype) if recorder is None else recorder.empty(shape, dtype)


def matches(*tensors: Tensor | None) -> bool:
    """Whether these are what kernels compute on: float32 in main memory."""
    return all(x is None or (x.dtype == torch.float32 and x.device.type == "cpu") for x in tensors)


def rows(x: Tensor) -> Tensor:
    """x [..., D] as [T, D] with its last dimension in one run; a copy only where the strides allow no view."""
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()


def first_prompt(x: Tensor) -> int:
    """The row of x [T, D] from which on rows belong to prompts; T if none does or rows are not the step's tokens."""
    step = session().step
    return step[1] if step is not None and step[0] == len(x) else len(x)


def constant(x: Tensor | None) -> Tensor | None:
    """A bias or a sink as a run of float32; it is the same at every step, so a recording may hold it."""
    if x is None or (x.dtype == torch.float32 and x.is_contiguous()):
        return x
    recorder = session().recorder
    if recorder is None:
        return x.float().contiguous()
    with recorder.trust():
        return x.float().contiguous()


def address(x: Tensor | None) -> int | None:
    """Where a tensor begins."""
    return None if x is None else x.data_ptr()


def dense_type(x: Tensor | None) -> int | None:
    """The number of a dense float type; None: kernels do not read it."""
    return structs.F32 if x is None else _DENSE.get(x.dtype)


def weight(w: Tensor | QuantTensor) -> structs.Weight | None:
    """A matrix as kernels see it; None where they cannot multiply with it."""
    if w.device.type != "cpu" or len(w.shape) != 2:
        return None
    packed = 0
    if isinstance(w, Tensor):
        type = _DENSE.get(w.dtype, -1)
        if w.shape[1] > 1 and w.stride(1) != 1:
            return None
        data, scale, block = w, None, (0, 0)
        row_bytes = w.stride(0) * w.element_size()
    else:
        type = structs.FP8_E4M3 if w.block else GGML_BY_NAME[w.type].id
        data, scale, block = w.parts["data"], w.parts.get("scale"), w.block or (0, 0)
        row_bytes = data.stride(0)
        if w.layout == tiles.LAYOUT:
            packed, row_bytes = 1, GGML_BY_NAME[w.type].row_bytes(w.shape[1])
            if session().pool.tile_rows(type) * row_bytes != data.shape[1]:
                return None  # packed for another instruction set
        elif w.layout != "ggml":
            return None
    if not session().pool.has_type(type):
        return None
    return structs.Weight(
        type=type,
        packed=packed,
        rows=w.shape[0],
        cols=w.shape[1],
        data=data.data_ptr(),
        row_bytes=row_bytes,
        scale=address(scale),
        scale_stride=0 if scale is None else scale.stride(0),
        block_rows=block[0],
        block_cols=block[1],
    )


def stack(w: Tensor | QuantTensor) -> structs.Stack | None:
    """Matrices [N, rows, columns] as kernels see them; None where they cannot multiply with them."""
    first = weight(w[0]) if len(w.shape) == 3 else None
    if first is None:
        return None
    if isinstance(w, Tensor):
        return structs.Stack(first, w.stride(0) * w.element_size(), 0)
    scale = w.parts.get("scale")
    return structs.Stack(first, w.parts["data"].stride(0), 0 if scale is None else scale.stride(0))


def weights(matrices: Sequence[Tensor | QuantTensor]) -> list[structs.Weight] | None:
    """All of them, or None if kernels cannot multiply with one."""
    found = []
    for matrix in matrices:
        if (one := weight(matrix)) is None:
            return None
        found.append(one)
    return found
