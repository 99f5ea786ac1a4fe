"""Native `linear`: the input is quantised once per kind of weight, then multiplied with packed blocks."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor

from zoo.kernels.linear import reference
from zoo.kernels.native import call, structs
from zoo.quant.tensor import QuantTensor


def linear(x: Tensor, weights: Sequence[Tensor | QuantTensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """See zoo.kernels.linear."""
    found = call.weights(weights) if call.matches(x) else None
    if found is None or not x.numel():
        return reference.linear(x, weights, biases)
    flat, added = call.rows(x), [call.constant(bias) for bias in biases]
    outputs = [call.empty((*x.shape[:-1], weight.rows)) for weight in found]
    parts = (structs.Part * len(found))(
        *(
            structs.Part(weight, y.data_ptr(), weight.rows, call.address(bias))
            for weight, y, bias in zip(found, outputs, added, strict=True)
        )
    )
    op = structs.Linear(
        structs.LINEAR,
        len(found),
        flat.data_ptr(),
        len(flat),
        flat.stride(0),
        call.first_prompt(flat),
        ctypes.addressof(parts),
    )
    call.run(op, parts, weights, added)
    return tuple(outputs)
