"""Native `position_scale`."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.native import elementwise
from zoo.kernels.position_scale import reference


def position_scale(x: Tensor, positions: Tensor, *, beta: float, length: int) -> Tensor:
    """See zoo.kernels.position_scale."""
    found = elementwise.position_scale(x, positions, beta, length)
    return reference.position_scale(x, positions, beta=beta, length=length) if found is None else found
