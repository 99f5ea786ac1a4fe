"""Plain torch `activate`, and the activations by their names."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from zoo.kernels.glu import Activation


def activate(x: Tensor, act: Activation) -> Tensor:
    """See zoo.kernels.activate."""
    return F.silu(x) if act == "silu" else F.gelu(x, approximate="tanh")
