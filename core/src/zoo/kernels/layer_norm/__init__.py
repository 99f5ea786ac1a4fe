"""Layer norm, with the residual addition that comes before it."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.registry import implementation

__all__ = ["layer_norm"]


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, add: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Centre and scale the last dimension, then weight and bias, all in float32 (Ba et al. 2016, arXiv 1607.06450).

    x: [..., D]; weight, bias: [D] or None; add: [..., D], added to x first. Returns (normalised, x + add) in the dtype
    of x.
    """
    result: tuple[Tensor, Tensor] = implementation("layer_norm", x.device.type)(x, weight, bias, eps=eps, add=add)
    return result
