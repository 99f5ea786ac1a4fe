"""An activation by itself, for MLPs without a gate: down(act(up(x)))."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.glu import Activation
from zoo.kernels.registry import implementation

__all__ = ["activate"]


def activate(x: Tensor, *, act: Activation) -> Tensor:
    """Apply an activation to each element. x: [..., F]; returns [..., F] in the dtype of x."""
    result: Tensor = implementation("activate", x.device.type)(x, act=act)
    return result
