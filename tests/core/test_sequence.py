"""SamplingParams: ranges and defaults; Sequence: positions and ends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from zoo.engine.sequence import DEFAULTS, SamplingParams, Sequence
from zoo.errors import UsageError

RANGES: dict[str, tuple[Any, Any]] = {
    "max_tokens": (1, 1 << 40),
    "temperature": (0, 100),
    "top_k": (0, (1 << 31) - 1),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repeat_penalty": (0.01, 100),
    "logprobs": (0, 100),
    "seed": (0, (1 << 64) - 1),
}


@pytest.mark.parametrize("name", RANGES)
def test_ends_of_a_range_are_in_it(name: str) -> None:
    for value in RANGES[name]:
        assert getattr(SamplingParams(**{name: value}), name) == value


@pytest.mark.parametrize("name", RANGES)
def test_a_value_outside_its_range_is_refused(name: str) -> None:
    low, high = RANGES[name]
    for value in (low - 1, high + 1, math.nan, math.inf, -math.inf, "1", True, [1]):
        with pytest.raises(UsageError, match=f"^{name} is .*; use ") as caught:
            SamplingParams(**{name: value})
        assert str(high) in str(caught.value)


@pytest.mark.parametrize("name", ["max_tokens", "top_k", "logprobs", "seed"])
def test_counts_are_integers(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is 1.5; use an integer"):
        SamplingParams(**{name: 1.5})
    assert getattr(SamplingParams(**{name: np.int64(7)}), name) == 7


def test_stop_takes_one_string_or_several() -> None:
    assert SamplingParams(stop="END").stop == ("END",)
    assert list(SamplingParams(stop=["a", "b"]).stop) == ["a", "b"]


@pytest.mark.parametrize("stop", ["", ["a", ""], [1], [None]])
def test_bad_stop_strings_are_refused(stop: Any) -> None:
    with pytest.raises(UsageError, match=r"stop holds .*; give strings"):
        SamplingParams(stop=stop)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stop", 5, "stop is 5; give a list"),
        ("stop_token_ids", 5, "stop_token_ids is 5; give a list"),
        ("stop_token_ids", ["</s>"], "stop_token_ids holds '</s>'; give token ids; texts go to `stop`"),
        ("stop_token_ids", [3, 4.0], r"stop_token_ids holds 4\.0"),
        ("json_schema", "{}", "json_schema is a str; give it as a dict"),
        ("grammar", {"start": "x"}, "grammar is a dict; give it as text"),
    ],
)
def test_what_has_another_type_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingParams(**{name: value})
    assert SamplingParams(stop_token_ids={np.int64(7)}).stop_token_ids == {7}


def test_filled_prefers_what_was_given_then_the_model_then_defaults() -> None:
    filled = SamplingParams(temperature=0, top_k=7).filled({"temperature": 0.3, "top_p": 0.5, "min_p": 0, "top_k": 9})
    assert (filled.temperature, filled.top_k, filled.top_p, filled.min_p) == (0, 7, 0.5, 0)
    assert filled.repeat_penalty == DEFAULTS["repeat_penalty"]
    nothing = SamplingParams().filled({})
    assert {name: getattr(nothing, name) for name in DEFAULTS} == DEFAULTS


def test_filled_keeps_the_kind_of_a_default() -> None:
    filled = SamplingParams().filled({"top_k": 20.0, "temperature": 1})
    assert isinstance(filled.top_k, int)
    assert isinstance(filled.temperature, float)


def test_filled_refuses_what_a_model_must_not_recommend() -> None:
    with pytest.raises(UsageError, match="top_p is 2"):
        SamplingParams().filled({"top_p": 2})


def test_filled_keeps_everything_else_and_draws_a_seed() -> None:
    params = SamplingParams(max_tokens=3, stop="x", stop_token_ids=[4], ignore_eos=True, logprobs=2)
    filled = params.filled({})
    for name in ("max_tokens", "stop", "stop_token_ids", "ignore_eos", "logprobs"):
        assert getattr(filled, name) == getattr(params, name)
    seeds = {SamplingParams().filled({}).seed for _ in range(5)}
    assert len(seeds) == 5
    assert None not in seeds
    assert SamplingParams(seed=0).filled({}).seed == 0


def sequence(prompt: list[int], max_tokens: int = 3, stops: frozenset[int] = frozenset({9})) -> Sequence:
    return Sequence("r", tuple(prompt), SamplingParams(), stops, max_tokens)


def test_token_ids_are_a_slice_of_prompt_and_output() -> None:
    made = sequence([1, 2, 3], max_tokens=10)
    for token in (4, 5, 6):
        made.append(token)
    everything = [1, 2, 3, 4, 5, 6]
    assert made.num_tokens == 6
    for start in range(7):
        for stop in range(start, 7):
            assert made.token_ids(start, stop) == everything[start:stop]


def test_an_end_token_is_no_output() -> None:
    made = sequence([1])
    made.append(4)
    assert made.finish_reason is None
    made.append(9)
    assert (made.output_token_ids, made.finish_reason) == ([4], "stop")


def test_max_tokens_ends_a_sequence() -> None:
    made = sequence([1], max_tokens=2)
    made.append(4)
    made.append(5)
    assert (made.output_token_ids, made.finish_reason) == ([4, 5], "length")


def test_an_end_token_in_place_of_the_last_is_a_stop() -> None:
    made = sequence([1], max_tokens=1)
    made.append(9)
    assert (made.output_token_ids, made.finish_reason) == ([], "stop")
