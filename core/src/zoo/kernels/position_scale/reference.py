"""Plain torch `position_scale`."""

from __future__ import annotations

from torch import Tensor


def position_scale(x: Tensor, positions: Tensor, *, beta: float, length: int) -> Tensor:
    """See zoo.kernels.position_scale."""
    scale = 1 + beta * positions.div(length, rounding_mode="floor").float().log1p()
    return (x.float() * scale.view(-1, *[1] * (x.dim() - 1))).to(x.dtype)
