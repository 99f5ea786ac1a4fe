"""A temperature that grows with the position, for queries of models that were stretched to long contexts."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.registry import implementation

__all__ = ["position_scale"]


def position_scale(x: Tensor, positions: Tensor, *, beta: float, length: int) -> Tensor:
    """Each token of x times 1 + beta ln(1 + floor(position / length)): unchanged within the first `length` positions.

    x: [T, ...]; positions: int32 [T]; returns the like of x, computed in float32. This is the temperature tuning of
    Llama 4 and of Ministral 3, `length` being the context before stretching (Nakanishi 2025, arXiv 2501.19399).
    """
    result: Tensor = implementation("position_scale", x.device.type)(x, positions, beta=beta, length=length)
    return result
