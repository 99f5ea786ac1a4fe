"""Which experts a token goes to, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from zoo.kernels.registry import implementation

__all__ = ["Routing", "route"]


@dataclass(frozen=True, slots=True)
class Routing:
    """How a family turns router logits into a choice.

    `scoring`: over all experts, in float32. "sparsemixer" chooses one expert after the other, each weighted by its
    softmax among the experts left whose logits are within twice `jitter` of the best of them, relatively (PhiMoE,
    arXiv 2409.12136, section 2.2); it takes no groups and no bias. `num_groups` > 1: experts compete in equal groups,
    the best `top_groups` stay; a group counts by its best score ("max", DeepSeek-V2: others are masked with 0) or by
    the sum of its two best ("top2", DeepSeek-V3: others are masked with -inf). `normalize`: the chosen weights are
    divided by their sum. `scale` multiplies the weights last.
    """

    top_k: int
    scoring: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    num_groups: int = 1
    top_groups: int = 1
    group_score: Literal["max", "top2"] = "max"
    normalize: bool = False
    scale: float = 1.0
    jitter: float = 0.01


def route(logits: Tensor, routing: Routing, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Choose experts.

    logits: float32 [T, E]; bias: float32 [E], added to the scores for the choice only, never to the weights
    (DeepSeek-V3, arXiv 2412.19437, section 2.1.2). Returns indices int32 [T, k] and weights float32 [T, k].
    """
    result: tuple[Tensor, Tensor] = implementation("route", logits.device.type)(logits, routing, bias)
    return result
