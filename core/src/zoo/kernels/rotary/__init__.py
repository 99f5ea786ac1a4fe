"""Cosines and sines of rotary position embedding, once per step for all layers that share the frequencies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zoo.kernels.registry import implementation

__all__ = ["Rotary", "rotary"]


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotation of each token of a batch: `cos`, `sin` float32 [T, R/2], where R leading dimensions of a head rotate.

    `interleaved`: pairs are (x[2i], x[2i+1]); else (x[i], x[i + R/2]). Which one holds is a fact of the weights.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool


def rotary(positions: Tensor, inv_freq: Tensor, *, attention_scaling: float, interleaved: bool) -> Rotary:
    """Angles positions x inv_freq (Su et al. 2021, arXiv 2104.09864), in float32.

    positions: int32 [T]; inv_freq: float32 [R/2], radians per token; cos and sin are multiplied by `attention_scaling`.
    """
    result: Rotary = implementation("rotary", positions.device.type)(
        positions, inv_freq, attention_scaling=attention_scaling, interleaved=interleaved
    )
    return result
