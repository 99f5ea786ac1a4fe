"""Plain torch `softcap`."""

from __future__ import annotations

from torch import Tensor


def softcap(x: Tensor, cap: float) -> Tensor:
    """See zoo.kernels.softcap."""
    return (x / cap).tanh_().mul_(cap)  # in place: the logits of a long prompt are gigabytes
