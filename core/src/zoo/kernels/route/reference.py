"""Plain torch `route`."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.route import Routing


def route(logits: Tensor, routing: Routing, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See zoo.kernels.route."""
    if routing.scoring == "sparsemixer":
        return _sparsemixer(logits.float(), routing)
    scores = logits.float().softmax(-1) if routing.scoring == "softmax" else logits.float().sigmoid()
    ranking = scores if bias is None else scores + bias
    if routing.num_groups > 1:
        ranking = _mask_groups(ranking, routing)
    indices = ranking.topk(routing.top_k, dim=-1).indices
    weights = scores.gather(-1, indices)
    if routing.normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return indices.int(), weights * routing.scale


def _sparsemixer(logits: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    left, indices, weights = logits, [], []
    for _ in range(routing.top_k):
        best, index = left.max(-1, keepdim=True)
        # Distance relative to the larger of the expert's own size and the best logit; the chosen stay at -inf.
        far = (best - logits) / torch.maximum(logits.abs(), best) > 2 * routing.jitter
        weights.append(left.masked_fill(far, float("-inf")).softmax(-1).gather(-1, index))
        indices.append(index)
        left = left.scatter(-1, index, float("-inf"))
    return torch.cat(indices, -1).int(), torch.cat(weights, -1) * routing.scale


def _mask_groups(ranking: Tensor, routing: Routing) -> Tensor:
    grouped = ranking.unflatten(-1, (routing.num_groups, -1))
    if routing.group_score == "max":
        group_scores, excluded = grouped.amax(-1), 0.0
    else:
        # A biased score may be negative, so an excluded expert must rank below everything, not at 0.
        group_scores, excluded = grouped.topk(2, dim=-1).values.sum(-1), float("-inf")
    chosen = group_scores.topk(routing.top_groups, dim=-1).indices
    keep = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(-1, chosen, True)
    return grouped.masked_fill(~keep[..., None], excluded).flatten(-2)
