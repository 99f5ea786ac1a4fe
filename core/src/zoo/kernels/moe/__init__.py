"""A mixture of gated experts: each token goes through the few experts that its router chose."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.glu import Activation
from zoo.kernels.registry import implementation
from zoo.quant.experts import ExpertWeights

__all__ = ["moe"]


def moe(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate: ExpertWeights,
    up: ExpertWeights,
    down: ExpertWeights,
    *,
    act: Activation = "silu",
    add: Tensor | None = None,
) -> Tensor:
    """Sum over the chosen experts e of weight * down_e(act(gate_e x) * up_e x), plus `add`.

    x: [T, D]; indices: int32 [T, k]; weights: float32 [T, k]; gate, up: [E, F, D]; down: [E, D, F]; add: [T, D] (what
    shared experts gave). Only chosen experts are read. Returns [T, D] in the dtype of x.
    """
    result: Tensor = implementation("moe", x.device.type)(x, indices, weights, gate, up, down, act=act, add=add)
    return result
