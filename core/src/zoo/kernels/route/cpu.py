"""Native `route`."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.native import call, structs
from zoo.kernels.route import Routing, reference


def route(logits: Tensor, routing: Routing, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See zoo.kernels.route."""
    fits = routing.scoring in structs.SCORINGS and routing.group_score in ("max", "top2")
    if not fits or not call.matches(logits) or logits.stride(-1) != 1 or not logits.numel():
        return reference.route(logits, routing, bias)
    added, shape = call.constant(bias), (logits.shape[0], routing.top_k)
    indices, weights = call.empty(shape, torch.int32), call.empty(shape)
    op = structs.Route(
        code=structs.ROUTE,
        scoring=structs.SCORINGS[routing.scoring],
        logits=logits.data_ptr(),
        bias=call.address(added),
        indices=indices.data_ptr(),
        weights=weights.data_ptr(),
        tokens=logits.shape[0],
        experts=logits.shape[1],
        ld=logits.stride(0),
        top_k=routing.top_k,
        groups=routing.num_groups,
        top_groups=routing.top_groups,
        best_two=routing.group_score == "top2",
        normalize=routing.normalize,
        scale=routing.scale,
        jitter=routing.jitter,
    )
    call.run(op, added)
    return indices, weights
