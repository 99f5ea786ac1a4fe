"""Plain torch `rms_norm`."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(
    x: Tensor, weight: Tensor | None, *, eps: float, add: Tensor | None = None, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """See zoo.kernels.rms_norm."""
    if add is not None:
        x = x + add
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is None:
        return normed.to(x.dtype), x
    if offset:
        return (normed * (offset + weight.float())).to(x.dtype), x
    return (normed.to(x.dtype) * weight).to(x.dtype), x
