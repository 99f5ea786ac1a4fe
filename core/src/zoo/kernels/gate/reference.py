"""Plain torch `gate`."""

from __future__ import annotations

from torch import Tensor


def gate(x: Tensor, by: Tensor) -> Tensor:
    """See zoo.kernels.gate."""
    return (x.float() * by.float().sigmoid()).to(x.dtype)
