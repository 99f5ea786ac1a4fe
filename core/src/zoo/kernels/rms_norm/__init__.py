"""Root-mean-square norm, with the residual addition that comes before it."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.registry import implementation

__all__ = ["rms_norm"]


def rms_norm(
    x: Tensor, weight: Tensor | None, *, eps: float, add: Tensor | None = None, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Normalise the last dimension in float32 (Zhang and Sennrich 2019, arXiv 1910.07467).

    x: [..., D]; weight: [D] or None; add: [..., D], added to x first. Returns (normalised, x + add) in the dtype of x.
    `offset` 0: round to the dtype of x, then multiply by the weight (Llama). `offset` 1: multiply by 1 + weight in
    float32, then round (Gemma's checkpoints).
    """
    result: tuple[Tensor, Tensor] = implementation("rms_norm", x.device.type)(
        x, weight, eps=eps, add=add, offset=offset
    )
    return result
