"""Routed experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from zoo import kernels
from zoo.kernels.glu import Activation
from zoo.kernels.route import Routing
from zoo.nn.leaf import Leaf
from zoo.quant.experts import ExpertWeights


class Router(Leaf):
    """Scores a token against every expert in float32 and chooses. `correction` adds a bias for the choice only."""

    weight: Tensor
    e_score_correction_bias: Tensor | None

    def __init__(self, hidden_size: int, num_experts: int, routing: Routing, *, correction: bool = False) -> None:
        super().__init__()
        self.routing = routing
        self.declare("weight", num_experts, hidden_size)
        if correction:
            self.declare("e_score_correction_bias", num_experts)
        else:
            self.e_score_correction_bias = None

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """[T, hidden_size] -> indices int32 [T, k], weights float32 [T, k]."""
        logits = kernels.linear(hidden_states.float(), (self.weight,), (None,))[0]
        return kernels.route(logits, self.routing, self.e_score_correction_bias)

    if TYPE_CHECKING:
        __call__ = forward


class Experts(Leaf):
    """E gated MLPs, each D -> F -> D, their weights as tables of views."""

    gate_proj: ExpertWeights
    up_proj: ExpertWeights
    down_proj: ExpertWeights

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, act: Activation = "silu") -> None:
        super().__init__()
        self.act = act
        self.declare("gate_proj", num_experts, intermediate_size, hidden_size)
        self.declare("up_proj", num_experts, intermediate_size, hidden_size)
        self.declare("down_proj", num_experts, hidden_size, intermediate_size)

    def forward(self, hidden_states: Tensor, indices: Tensor, weights: Tensor, add: Tensor | None = None) -> Tensor:
        """hidden_states [T, D], indices int32 [T, k], weights float32 [T, k], add [T, D] or None -> [T, D]."""
        return kernels.moe(
            hidden_states, indices, weights, self.gate_proj, self.up_proj, self.down_proj, act=self.act, add=add
        )

    if TYPE_CHECKING:
        __call__ = forward
