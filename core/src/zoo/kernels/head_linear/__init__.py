"""One small weight per head: y[t, n] = x[t, n] W[n]^T, or x[t, n] W[n] (latent attention)."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.registry import implementation
from zoo.quant.tensor import QuantTensor

__all__ = ["head_linear"]


def head_linear(x: Tensor, weight: Tensor | QuantTensor, *, transposed: bool = False) -> Tensor:
    """Multiply each head by its own weight.

    x: [T, N, in]; weight: [N, out, in], or [N, in, out] with `transposed`. Returns [T, N, out] in the dtype of x.
    """
    result: Tensor = implementation("head_linear", x.device.type)(x, weight, transposed=transposed)
    return result
