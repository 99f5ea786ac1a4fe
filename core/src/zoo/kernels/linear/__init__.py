"""Several weights on one input: y_i = x W_i^T + b_i."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from zoo.kernels.registry import implementation
from zoo.quant.tensor import QuantTensor

__all__ = ["linear"]


def linear(x: Tensor, weights: Sequence[Tensor | QuantTensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Multiply one input by several weights of any mix of types.

    x: [..., in]; weights: [out_i, in], dense of any float dtype or quantised; biases: [out_i] or None, one per weight.
    Returns one [..., out_i] per weight, in the dtype of x. Several at once let a kernel quantise or load x only once.
    """
    result: tuple[Tensor, ...] = implementation("linear", x.device.type)(x, weights, biases)
    return result
