"""Plain torch `sample`."""

from __future__ import annotations

import torch
from torch import Tensor


def sample(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    banned: Tensor | None = None,
) -> Tensor:
    """See zoo.kernels.sample."""
    if banned is not None:
        logits = logits.masked_fill(banned, float("-inf"))
    greedy = temperature <= 0
    # From the largest downwards, so that a tiny temperature makes no two logits infinite.
    scaled = (logits - logits.amax(-1, keepdim=True)) / torch.where(greedy, 1.0, temperature)[:, None]
    # A stable sort puts equal logits in order of id, so that greedy picks the same token as argmax everywhere.
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    kept = (rank < top_k[:, None]) | (top_k[:, None] <= 0)
    probs = ordered.masked_fill(~kept, float("-inf")).softmax(-1)
    before = probs.cumsum(-1) - probs
    # A rounded sum may reach 1 before the last token: at top_p 1 nothing is dropped.
    nucleus = (before < top_p[:, None]) | (top_p[:, None] >= 1)
    # The likeliest token survives every filter: before is 0 there, and it is its own maximum.
    kept = kept & nucleus & (probs >= min_p[:, None] * probs[:, :1])
    kept[:, 0] = True
    mass = probs.masked_fill(~kept, 0.0).double().cumsum(-1)
    target = uniform.double()[:, None] * mass[:, -1:]
    choice = (mass <= target).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    choice = torch.where(greedy[:, None], 0, choice)
    return ids.gather(-1, choice)[:, 0].int()
