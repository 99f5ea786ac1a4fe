"""Native `glu`: both products in one call, the activation on what they gave."""

from __future__ import annotations

import ctypes

from torch import Tensor

from zoo.kernels.glu import Activation, reference
from zoo.kernels.native import call, structs
from zoo.quant.tensor import QuantTensor


def glu(
    x: Tensor,
    gate: Tensor | QuantTensor,
    up: Tensor | QuantTensor,
    *,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    act: Activation = "silu",
) -> Tensor:
    """See zoo.kernels.glu."""
    found = call.weights((gate, up)) if call.matches(x) else None
    if found is None or act not in structs.ACTS or not x.numel():
        return reference.glu(x, gate, up, gate_bias=gate_bias, up_bias=up_bias, act=act)
    flat, added = call.rows(x), [call.constant(bias) for bias in (gate_bias, up_bias)]
    width = found[0].rows
    y = call.empty((*x.shape[:-1], width))
    parts = (structs.Part * 2)(
        *(structs.Part(weight, None, 0, call.address(bias)) for weight, bias in zip(found, added, strict=True))
    )
    op = structs.Glu(
        structs.GLU,
        structs.ACTS[act],
        flat.data_ptr(),
        len(flat),
        flat.stride(0),
        call.first_prompt(flat),
        ctypes.addressof(parts),
        y.data_ptr(),
        width,
    )
    call.run(op, parts, gate, up, added)
    return y
