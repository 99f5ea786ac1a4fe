"""Native `head_linear`."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.head_linear import reference
from zoo.kernels.native import call, structs
from zoo.quant.tensor import QuantTensor


def head_linear(x: Tensor, weight: Tensor | QuantTensor, *, transposed: bool = False) -> Tensor:
    """See zoo.kernels.head_linear."""
    stack = call.stack(weight) if call.matches(x) and x.stride(-1) == 1 else None
    if stack is None or not x.numel():
        return reference.head_linear(x, weight, transposed=transposed)
    y = call.empty((x.shape[0], x.shape[1], stack.first.cols if transposed else stack.first.rows))
    op = structs.HeadLinear(
        code=structs.HEAD_LINEAR,
        transposed=transposed,
        x=x.data_ptr(),
        tokens=x.shape[0],
        heads=x.shape[1],
        x_token=x.stride(0),
        x_head=x.stride(1),
        stack=stack,
        y=y.data_ptr(),
    )
    call.run(op, weight)
    return y
