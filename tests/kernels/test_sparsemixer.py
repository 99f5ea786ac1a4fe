"""Sparsemixer routing, against transformers' PhiMoE."""

from __future__ import annotations

import pytest
import torch
from transformers.models.phimoe.modeling_phimoe import sparsemixer

from zoo.kernels import Routing, route


@pytest.mark.parametrize("jitter", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_sparsemixer_equals_transformers(jitter: float, spread: float, shift: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(200, 16) * spread + shift
    weights, indices = sparsemixer(logits, jitter_eps=jitter, training=False, top_k=2)
    found, found_weights = route(logits, Routing(2, "sparsemixer", jitter=jitter))
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), indices)
    assert torch.allclose(found_weights, weights, atol=1e-6)


def test_the_weights_are_those_of_no_softmax_over_all() -> None:
    """A lone winner counts fully, and so does the second: together they weigh 2."""
    logits = torch.tensor([[9.0, 4.0, 1.0, -2.0]])
    indices, weights = route(logits, Routing(2, "sparsemixer"))
    assert indices.tolist() == [[0, 1]]
    assert weights.tolist() == [[1.0, 1.0]]
    close = torch.tensor([[9.0, 8.9, 1.0, -2.0]])
    _, weights = route(close, Routing(2, "sparsemixer", scale=2.0))
    assert weights[0].tolist() == pytest.approx([2 / (1 + torch.tensor(-0.1).exp().item()), 2.0])
