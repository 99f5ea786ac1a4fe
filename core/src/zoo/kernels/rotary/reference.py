"""Plain torch `rotary`, and the rotation itself."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.rotary import Rotary


def rotary(positions: Tensor, inv_freq: Tensor, *, attention_scaling: float, interleaved: bool) -> Rotary:
    """See zoo.kernels.rotary."""
    angles = positions.float()[:, None] * inv_freq[None, :]
    return Rotary(angles.cos() * attention_scaling, angles.sin() * attention_scaling, interleaved)


def rotate(x: Tensor, rotation: Rotary) -> Tensor:
    """Rotate the leading R of the last dimension of x [T, heads, H] in float32; the rest passes through."""
    size = 2 * rotation.cos.shape[-1]
    head, rest = x[..., :size].float(), x[..., size:]
    cos, sin = rotation.cos[:, None, :], rotation.sin[:, None, :]
    if rotation.interleaved:
        a, b = head[..., 0::2], head[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = head.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    turned = turned.to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
