"""A gate on the output of a block: x * sigmoid(gate)."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.registry import implementation

__all__ = ["gate"]


def gate(x: Tensor, by: Tensor) -> Tensor:
    """Element by element x * sigmoid(by), computed in float32.

    x: [T, D]; by: [T, 1], one gate per token (the shared expert of Qwen2-MoE), or [T, D], one per element (gated
    attention). Returns [T, D] in the dtype of x.
    """
    result: Tensor = implementation("gate", x.device.type)(x, by)
    return result
