"""Native `rotary`."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.native import call, structs
from zoo.kernels.rotary import Rotary, reference


def rotary(positions: Tensor, inv_freq: Tensor, *, attention_scaling: float, interleaved: bool) -> Rotary:
    """See zoo.kernels.rotary."""
    fits = positions.dtype == torch.int32 and positions.is_contiguous() and inv_freq.is_contiguous()
    if not fits or not call.matches(inv_freq) or positions.dim() != 1 or not positions.numel():
        return reference.rotary(positions, inv_freq, attention_scaling=attention_scaling, interleaved=interleaved)
    cos, sin = (call.empty((len(positions), len(inv_freq))) for _ in range(2))
    op = structs.Rotary(
        structs.ROTARY,
        attention_scaling,
        positions.data_ptr(),
        inv_freq.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        len(positions),
        len(inv_freq),
    )
    call.run(op, positions, inv_freq)
    return Rotary(cos, sin, interleaved)
