"""Logits squeezed into (-cap, cap)."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.registry import implementation

__all__ = ["softcap"]


def softcap(x: Tensor, cap: float) -> Tensor:
    """Cap * tanh(x / cap), element by element (Gemma 2, arXiv 2408.00118, section 2). x: any shape; returns as x."""
    result: Tensor = implementation("softcap", x.device.type)(x, cap)
    return result
