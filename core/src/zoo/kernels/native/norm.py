"""The two norms, which differ by a code."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.native import call, structs


def norm(
    code: int, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, add: Tensor | None, offset: float
) -> tuple[Tensor, Tensor] | None:
    """(normalised, x + add), or None where kernels cannot."""
    type = call.dense_type(weight)
    if type is None or not call.matches(x, add) or not x.numel():
        return None
    if bias is not None and weight is not None and bias.dtype != weight.dtype:
        bias, weight, type = call.constant(bias), call.constant(weight), structs.F32
    flat, added = call.rows(x), None if add is None else call.rows(add)
    y = call.empty(tuple(x.shape))
    total = x if add is None else call.empty(tuple(x.shape))
    op = structs.Norm(
        code=code,
        type=type,
        x=flat.data_ptr(),
        add=call.address(added),
        weight=call.address(weight),
        bias=call.address(bias),
        y=y.data_ptr(),
        sum=total.data_ptr(),
        rows=len(flat),
        cols=flat.shape[1],
        ldx=flat.stride(0),
        ld_add=0 if added is None else added.stride(0),
        eps=eps,
        offset=offset,
    )
    call.run(op, weight, bias)
    return y, total
