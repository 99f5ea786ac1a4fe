"""Sums, gates and activations: y[r, c] = f(a[r, c], b[r, c])."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.native import call, structs


def position_scale(x: Tensor, positions: Tensor, beta: float, length: int) -> Tensor | None:
    """See zoo.kernels.position_scale; None where kernels cannot."""
    if not call.matches(x) or positions.dtype != torch.int32 or not positions.is_contiguous() or not x.numel():
        return None
    flat = x.reshape(len(positions), -1)
    y = call.empty(tuple(x.shape))
    op = structs.Elementwise(
        code=structs.ELEMENTWISE,
        what=structs.POSITION_SCALE,
        a=flat.data_ptr(),
        b=positions.data_ptr(),
        y=y.data_ptr(),
        rows=len(flat),
        cols=flat.shape[1],
        lda=flat.stride(0),
        b_cols=1,
        length=length,
        value=beta,
    )
    call.run(op, positions)
    return y


def elementwise(what: int, a: Tensor, b: Tensor | None = None, *, act: int = 0, value: float = 0.0) -> Tensor | None:
    """F of a [..., D] and b [..., D] or [..., 1], or None where kernels cannot."""
    if not call.matches(a, b) or not a.numel():
        return None
    first, second = call.rows(a), None if b is None else call.rows(b)
    if second is not None and (len(second) != len(first) or second.shape[1] not in (1, first.shape[1])):
        return None
    y = call.empty(tuple(a.shape))
    op = structs.Elementwise(
        code=structs.ELEMENTWISE,
        what=what,
        a=first.data_ptr(),
        b=call.address(second),
        y=y.data_ptr(),
        rows=len(first),
        cols=first.shape[1],
        lda=first.stride(0),
        ldb=0 if second is None else second.stride(0),
        b_cols=0 if second is None else second.shape[1],
        act=act,
        value=value,
    )
    call.run(op)
    return y
