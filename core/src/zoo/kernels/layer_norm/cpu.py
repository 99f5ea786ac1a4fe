"""Native `layer_norm`."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.layer_norm import reference
from zoo.kernels.native import norm, structs


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, add: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See zoo.kernels.layer_norm."""
    found = norm.norm(structs.LAYER_NORM, x, weight, bias, eps, add, 0.0)
    return reference.layer_norm(x, weight, bias, eps=eps, add=add) if found is None else found
