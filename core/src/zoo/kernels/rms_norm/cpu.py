"""Native `rms_norm`."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.native import norm, structs
from zoo.kernels.rms_norm import reference


def rms_norm(
    x: Tensor, weight: Tensor | None, *, eps: float, add: Tensor | None = None, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """See zoo.kernels.rms_norm."""
    found = norm.norm(structs.RMS_NORM, x, weight, None, eps, add, offset)
    return reference.rms_norm(x, weight, eps=eps, add=add, offset=offset) if found is None else found
