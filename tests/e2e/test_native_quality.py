"""The fast CPU kernels round activations, those of answers to 8 bits; on real models that costs next to nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo import LLM
from zoo.kernels.registry import choose

ROOT = Path(__file__).parents[2]
TOKENS = 1500


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def reference(request: pytest.FixtureRequest, reference_path: Any) -> tuple[Any, list[int], Tensor]:
    """A model, token ids [T + 1], and log probabilities [T, V] by the reference kernels."""
    path = request.getfixturevalue(request.param)
    text = "\n".join(
        (ROOT / name).read_text() for name in ("docs/troubleshooting.md", "SECURITY.md", "CONTRIBUTING.md")
    )
    assert choose("linear", "cpu").backend == "cpu", "there are no fast kernels here: zoo doctor says why"
    with reference_path(), LLM.load(path, device="cpu", context=2048) as llm:
        ids = llm.tokenizer.encode(text)[:TOKENS]
        return path, ids, llm.logits(ids).log_softmax(-1)[:-1]


@pytest.fixture(scope="module", params=["as a prompt", "as an answer"])
def rows(request: pytest.FixtureRequest, reference: tuple[Any, list[int], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Next token ids [T], and log probabilities [T, V] by the fast and by the reference kernels.

    Some processors round prompts to bfloat16, so the same tokens are computed as an answer too.
    """
    path, ids, slow = reference
    with LLM.load(path, device="cpu", context=2048) as llm:
        runner = llm.engine.runner
        if request.param == "as an answer":
            pack = runner.batch
            runner.batch = lambda *args, **options: replace(pack(*args, **options), prompt_start=None)  # type: ignore[method-assign]
        return torch.tensor(ids[1:]), llm.logits(ids).log_softmax(-1)[:-1], slow


def test_perplexity_is_that_of_the_reference(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    ids, fast, slow = rows
    assert len(ids) > 1000
    found, wanted = (-x.gather(-1, ids[:, None]).double().mean() for x in (fast, slow))
    print(f"perplexity {found.exp():.4f} and {wanted.exp():.4f}, ratio {(found - wanted).exp() - 1:+.4%}")
    assert abs((found - wanted).exp() - 1) < 0.005


def test_divergence_is_small_and_choices_are_the_same_where_they_are_clear(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    _, fast, slow = rows
    kl = torch.cat([(b.exp() * (b - a)).sum(-1) for a, b in zip(fast.split(64), slow.split(64), strict=True)])
    assert kl.mean() < 0.01
    best = slow.topk(2)
    clear = best.values[:, 0] - best.values[:, 1] > 0.5
    other = fast.argmax(-1)[clear] != best.indices[clear, 0]
    # A few tokens have an activation that takes one of two very different values, and rounding may decide which.
    assert other.double().mean() < 0.003
