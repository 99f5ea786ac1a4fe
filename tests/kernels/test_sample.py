"""Sampling against an implementation in numpy that works on one row at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.engine.sampler import Sampler, logprob
from zoo.engine.sequence import SamplingParams, Sequence
from zoo.errors import UsageError
from zoo.kernels import sample

CPU = torch.device("cpu")


def draw(logits: Tensor, **settings: Any) -> list[int]:
    """Tokens of rows; a setting is one number for all rows or a list."""
    rows = logits.shape[0]
    values: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "uniform": 0.5, **settings}
    banned = values.pop("banned", None)
    tensors = {
        name: torch.as_tensor(value, dtype=torch.int32 if name == "top_k" else torch.float32).expand(rows)
        for name, value in values.items()
    }
    tokens = sample(logits, **tensors, banned=banned)
    assert tokens.dtype == torch.int32
    return tokens.tolist()


def distribution(row: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """What may be drawn, likeliest first, with its probability."""
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    if top_k:
        order = order[:top_k]
    weights = [math.exp((float(row[token]) - float(row[order[0]])) / temperature) for token in order]
    probs = [weight / math.fsum(weights) for weight in weights]
    kept, mass = [], 0.0
    for token, prob in zip(order, probs, strict=True):
        if kept and (mass >= top_p or prob < min_p * probs[0]):
            break
        kept.append((token, prob))
        mass += prob
    return {token: prob / mass for token, prob in kept}


def assert_as_often_as(found: np.ndarray, expected: np.ndarray) -> None:
    """Pearson's chi-square at 0.1%, its quantile by Wilson and Hilferty (1931). Seeds are fixed: it never changes."""
    if freedom := len(expected) - 1:
        statistic = float(((found - expected) ** 2 / expected).sum())
        assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


def rows(count: int, size: int, seed: int) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) * 2


def test_temperature_zero_is_argmax() -> None:
    logits = rows(50, 97, 0)
    for uniform in (0.0, 0.999):
        assert draw(logits, temperature=0.0, top_p=0.1, uniform=uniform) == logits.argmax(-1).tolist()


def test_greedy_takes_the_first_of_equals() -> None:
    assert draw(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), temperature=0.0) == [1]


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[5.0, 30.0, 2e4, -7.0], [-5.0, -30.0, -2.0, -7.0]])
    assert draw(logits, temperature=temperature, uniform=0.99) == [2, 2]


@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 1000, 2**31 - 1]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    uniform=st.floats(0, 0.998046875, width=32),
)
def test_equals_one_row_at_a_time(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> None:
    logits = rows(1, 50, seed)
    wanted = distribution(logits[0].numpy(), temperature, top_k, top_p, min_p)
    (found,) = draw(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, uniform=uniform)
    assert found in wanted
    before = 0.0
    for token, prob in wanted.items():
        if token == found:
            break
        before += prob
    assert before - 1e-5 <= uniform <= before + wanted[found] + 1e-5


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.0}, {0}),
        ({"min_p": 0.3}, {0, 1}),
        ({"min_p": 0.9}, {0}),
        ({"top_k": 3, "top_p": 0.6}, {0, 1}),  # of the three that top_k leaves, the first has 0.56
        ({}, {0, 1, 2, 3}),
    ],
)
def test_what_the_filters_leave(settings: dict[str, float], allowed: set[int]) -> None:
    logits = torch.tensor([0.5, 0.25, 0.14, 0.11]).log().expand(1000, 4)
    assert set(draw(logits, uniform=torch.arange(1000) / 1000, **settings)) == allowed


def test_top_p_of_one_drops_nothing() -> None:
    """A float32 sum of 300 thousand probabilities passes 1 thousands of tokens before the end."""
    logits = torch.zeros(1, 300_000)
    logits[0, 0] = 8.0
    last = float(np.nextafter(np.float32(1), np.float32(0)))
    assert draw(logits, uniform=last) == [299_999]


def test_banned_tokens_are_never_drawn() -> None:
    logits = torch.full((1000, 8), float("-inf"))
    logits[:, 3] = logits[:, 5] = 0.0
    assert set(draw(logits, uniform=torch.arange(1000) / 1000)) == {3, 5}


@pytest.mark.parametrize("size", [1, 3, 64, 1001])
def test_banned_tokens_count_as_if_their_logits_were_minus_infinity(size: int) -> None:
    """Greedy and drawn rows, the likeliest token among the banned ones or not."""
    logits = rows(40, size, 5)
    settings = {
        "temperature": torch.arange(40) % 4 * 0.7,
        "top_k": torch.arange(40, dtype=torch.int32) % 3 * 20,
        "top_p": torch.linspace(0.1, 1, 40),
        "min_p": torch.linspace(0.1, 0, 40),
        "uniform": torch.linspace(0, 0.99, 40),
    }
    for share in (0.01, 0.5, 0.99):
        banned = torch.rand(size, generator=torch.Generator().manual_seed(size)) < share
        banned[size // 2] = False
        tokens = sample(logits, **settings, banned=banned)
        assert not banned[tokens.long()].any()
        assert torch.equal(tokens, sample(logits.masked_fill(banned, float("-inf")), **settings))
    assert draw(rows(3, size, 6), temperature=0.0, banned=torch.ones(size, dtype=torch.bool)) == [0, 0, 0]


def test_a_row_depends_on_nothing_but_itself() -> None:
    logits = rows(20, 64, 3)
    settings = {
        "temperature": torch.linspace(0, 2, 20),
        "top_k": torch.arange(20, dtype=torch.int32) * 3,
        "top_p": torch.linspace(0.1, 1, 20),
        "min_p": torch.linspace(0.3, 0, 20),
        "uniform": torch.linspace(0, 0.99, 20),
    }
    together = draw(logits, **settings)
    alone = [draw(logits[i : i + 1], **{k: v[i : i + 1] for k, v in settings.items()})[0] for i in range(20)]
    turned = draw(logits.flip(0), **{k: v.flip(0) for k, v in settings.items()})
    assert together == alone == turned[::-1]
    assert len(set(together)) > 5


# --- Sampler ---


def sequence(prompt: tuple[int, ...] = (0,), output: tuple[int, ...] = (), **params: Any) -> Sequence:
    filled = SamplingParams(**{"temperature": 1.0, "seed": 1, **params}).filled(
        {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
    )
    return Sequence("r", prompt, filled, frozenset(), 1000, list(output))


def sampler(size: int, tokenizer_size: int | None = None, suppressed: tuple[int, ...] = ()) -> Sampler:
    return Sampler(size, size if tokenizer_size is None else tokenizer_size, suppressed, CPU)


def walk(logits: Tensor, made: Sequence, steps: int) -> list[int]:
    chooser = sampler(logits.shape[-1])
    for _ in range(steps):
        made.append(*chooser.sample(logits[None], [made]))
    return made.output_token_ids


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 6, "top_p": 0.8, "min_p": 0.05}],
)
def test_tokens_come_as_often_as_they_should(params: dict[str, Any]) -> None:
    logits = rows(1, 10, 5)[0]
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **params}
    wanted = distribution(logits.numpy(), **values)
    chooser = sampler(10)
    tokens = [token for seed in range(1500) for token in chooser.sample(logits[None], [sequence(seed=seed, **params)])]
    counts = np.bincount(tokens, minlength=10)
    assert set(np.flatnonzero(counts)) <= set(wanted)
    expected = np.array([prob * len(tokens) for prob in wanted.values()])
    found = np.array([counts[token] for token in wanted])
    assert_as_often_as(found, expected)


def test_steps_of_one_seed_are_independent_draws() -> None:
    tokens = walk(torch.zeros(4), sequence(), 1000)
    pairs = np.bincount([4 * a + b for a, b in zip(tokens[::2], tokens[1::2], strict=True)], minlength=16)
    assert_as_often_as(pairs, np.full(16, 500 / 16))


def test_the_same_seed_gives_the_same_tokens_whatever_is_beside_it() -> None:
    logits = rows(3, 50, 6)
    chooser = sampler(50)
    for step in range(20):
        one = sequence(output=(0,) * step, seed=7)
        (alone,) = chooser.sample(logits[:1], [one])
        beside = [sequence(seed=8), sequence(output=(0,) * step, seed=7), sequence(temperature=0.0)]
        assert chooser.sample(logits[[1, 0, 2]], beside)[1] == alone
    assert walk(logits[0], sequence(seed=7), 20) != walk(logits[0], sequence(seed=8), 20)


def test_every_seed_is_usable() -> None:
    logits = rows(1, 50, 6)
    tokens = [sampler(50).sample(logits, [sequence(seed=seed)])[0] for seed in (0, 1, 2**63, 2**64 - 1)]
    assert all(0 <= token < 50 for token in tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_that_are_no_tokens_are_never_chosen(temperature: float) -> None:
    logits = torch.zeros(1, 10)
    logits[0, 7:] = 50.0
    logits[0, 2] = 40.0
    chooser = sampler(10, tokenizer_size=7, suppressed=(2,))
    chosen = {chooser.sample(logits, [sequence(seed=seed, temperature=temperature)])[0] for seed in range(200)}
    assert chosen == ({0} if temperature == 0 else {0, 1, 3, 4, 5, 6})


def test_repeat_penalty_equals_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = rows(2, 20, 8)
    prompts, outputs, penalties = [(1, 2, 3), (4, 4, 5)], [(6, 1), (7, 19)], [1.8, 0.6]
    for row in range(2):
        ids = torch.tensor([[*prompts[row], *outputs[row]]])
        wanted = RepetitionPenaltyLogitsProcessor(penalties[row])(ids, logits[row : row + 1].clone())
        made = [sequence(p, o, repeat_penalty=r) for p, o, r in zip(prompts, outputs, penalties, strict=True)]
        before = logits.clone()
        assert torch.equal(sampler(20)._edited(logits, made)[row], wanted[0])
        assert torch.equal(logits, before)


def test_repeat_penalty_of_one_row_leaves_others_alone() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    made = [sequence((0,), temperature=0.0, repeat_penalty=2.0), sequence((0,), temperature=0.0)]
    assert sampler(3).sample(logits, made) == [1, 0]


def test_a_penalty_does_not_bring_banned_tokens_back() -> None:
    made = sequence((2,), temperature=0.0, repeat_penalty=0.1)
    assert sampler(3, suppressed=(2,)).sample(torch.tensor([[1.0, 2.0, 3.0]]), [made]) == [1]


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = rows(2, 30, 9)
    made = [sequence((1,), seed=1, logprobs=3, repeat_penalty=5.0, temperature=0.3), sequence(seed=2)]
    tokens = sampler(30, suppressed=(int(logits[0].argmax()),)).sample(logits, made)
    (found,) = made[0].logprobs
    wanted = torch.nn.functional.log_softmax(logits[0], -1)
    assert found.token_id == tokens[0]
    assert found.logprob == pytest.approx(float(wanted[tokens[0]]), abs=1e-6)
    assert [token for token, _ in found.top] == wanted.argsort(descending=True)[:3].tolist()
    assert [value for _, value in found.top] == pytest.approx(sorted(wanted.tolist())[:-4:-1], abs=1e-6)
    assert made[1].logprobs == []


def test_logprobs_without_alternatives_and_with_more_than_there_are() -> None:
    row = torch.tensor([0.0, 1.0])
    assert logprob(row, 1, 0).top == ()
    assert [token for token, _ in logprob(row, 1, 100).top] == [1, 0]


def test_presence_and_frequency_penalties_and_biases_are_openais() -> None:
    """The formula of OpenAI's reference: mu[j] - c[j] * frequency - (c[j] > 0) * presence, c counting the output."""
    logits = rows(3, 20, 12)
    outputs = [(6, 1, 6, 6), (7, 19), ()]
    params = [
        {"presence_penalty": 0.7, "frequency_penalty": -1.3, "logit_bias": {6: 2.5, 3: -100}},
        {"presence_penalty": -0.4},
        {"frequency_penalty": 2.0, "logit_bias": {0: 1.0}},
    ]
    made = [sequence((6, 2), output, **more) for output, more in zip(outputs, params, strict=True)]
    found = sampler(20)._edited(logits, made)
    for row in range(3):
        wanted = logits[row].double().numpy().copy()
        for token in range(20):
            count = outputs[row].count(token)
            wanted[token] -= count * params[row].get("frequency_penalty", 0)
            wanted[token] -= (count > 0) * params[row].get("presence_penalty", 0)
            wanted[token] += params[row].get("logit_bias", {}).get(token, 0)
        np.testing.assert_allclose(found[row].numpy(), wanted, atol=1e-5)


class Allowing:
    """A constraint that allows the same ids for ever."""

    finished = False

    def __init__(self, *ids: int) -> None:
        bits = np.zeros(24, np.uint8)
        bits[list(ids)] = 1
        self.bits = np.packbits(bits, bitorder="little").tobytes()

    def mask(self) -> bytes:
        return self.bits

    def accept(self, token_id: int) -> None:
        raise UsageError(f"{token_id} is refused")


def test_a_constraint_leaves_only_what_it_allows() -> None:
    logits = rows(1, 20, 3).expand(2, 20)
    made = [sequence(temperature=0.0), sequence(temperature=0.0)]
    made[0].constraint = Allowing(4, 9)
    tokens = sampler(20).sample(logits, made)
    assert tokens == [max((4, 9), key=lambda id: float(logits[0, id])), int(logits[1].argmax())]


def test_a_constraint_that_allows_nothing_fails_alone() -> None:
    logits = rows(2, 20, 3)
    made = [sequence(), sequence(temperature=0.0)]
    made[0].constraint = Allowing(21)
    assert sampler(20).sample(logits, made)[1] == int(logits[1].argmax())
    assert "allows no token" in str(made[0].error)
    assert made[1].error is None
    banned = sequence()
    banned.constraint = Allowing(2)
    sampler(20, suppressed=(2,)).sample(logits[:1], [banned])
    assert "allows no token" in str(banned.error)
