"""One request on its way through the engine. No torch."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, Protocol

from zoo.errors import UsageError

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How to choose tokens, and when to stop. None: what the model recommends, else DEFAULTS.

    `max_tokens`: None goes on to the end of the context. `temperature` 0 is greedy. In this order: `repeat_penalty`
    over all tokens so far; `presence_penalty` once and `frequency_penalty` as often as a token is in the output,
    subtracted from its logit; `logit_bias` added to the logits of token ids; the grammar; temperature, `top_k` (0:
    all), `top_p`, `min_p`. `seed`: same seed, same text; None draws one.
    `json_schema`: the answer is JSON of this schema ({"type": "object"}: any object). `grammar`: it follows a grammar
    in llguidance's Lark. One of the two.
    `stop`: strings that end the text and are left out of it; `stop_token_ids`: ids that do so beside the model's own;
    `ignore_eos`: go on past the model's end tokens. `logprobs`: how many alternatives to report per token, None: none;
    `prompt_logprobs`: report them for the tokens of the prompt too.

    Raises UsageError for a value outside its range.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    stop: Items[str] = ()
    stop_token_ids: Collection[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    json_schema: Mapping[str, Any] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            if not isinstance(getattr(self, name), Collection):
                raise UsageError(f"{name} is {getattr(self, name)!r}", remedy="give a list")
        for name, (low, high) in _RANGES.items():
            value: Any = getattr(self, name)
            if value is None:
                continue
            kind: Any = Integral if name in _INTEGERS else Real
            if isinstance(value, bool) or not isinstance(value, kind):
                what = "an integer" if name in _INTEGERS else "a number"
                raise UsageError(f"{name} is {value!r}", remedy=f"use {what} from {low} to {high}")
            if not low <= value <= high:
                raise UsageError(f"{name} is {value}", remedy=f"use a value from {low} to {high}")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise UsageError(f"stop holds {list(self.stop)}", remedy="give strings of at least one character")
        ids: Collection[Any] = self.stop_token_ids
        if wrong := [token for token in ids if isinstance(token, bool) or not isinstance(token, Integral)]:
            raise UsageError(f"stop_token_ids holds {wrong[0]!r}", remedy="give token ids; texts go to `stop`")
        for name, what, kind in (("json_schema", "a dict", Mapping), ("grammar", "text", str)):
            if not isinstance(getattr(self, name), kind | None):
                raise UsageError(f"{name} is a {type(getattr(self, name)).__name__}", remedy=f"give it as {what}")
        biases: Mapping[Any, Any] = self.logit_bias
        for token, bias in biases.items():
            if isinstance(token, bool) or not isinstance(token, Integral) or not isinstance(bias, Real):
                raise UsageError(f"logit_bias holds {token!r}: {bias!r}", remedy="map token ids to numbers")
            if not -_LARGEST_BIAS <= float(bias) <= _LARGEST_BIAS:
                raise UsageError(
                    f"logit_bias of token {token} is {bias}",
                    remedy=f"use a value from -{_LARGEST_BIAS} to {_LARGEST_BIAS}",
                )
        if self.json_schema is not None and self.grammar is not None:
            raise UsageError("json_schema and grammar are both given", remedy="give one of them")
        if self.prompt_logprobs and self.logprobs is None:
            raise UsageError("prompt_logprobs needs logprobs", remedy="say how many alternatives: logprobs=0 or more")

    def filled(self, recommended: dict[str, float]) -> SamplingParams:
        """These parameters with every None that has a default replaced: by the model's, else by DEFAULTS."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, default in DEFAULTS.items():
            if values[name] is None:
                values[name] = type(default)(recommended.get(name, default))
        if values["seed"] is None:
            values["seed"] = secrets.randbits(63)
        return SamplingParams(**values)


DEFAULTS: dict[str, float] = {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0}
"""What is used where neither the caller nor the model says anything."""

_RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (1, 1 << 40),
    "temperature": (0, 100),
    "top_k": (0, (1 << 31) - 1),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repeat_penalty": (0.01, 100),
    "logprobs": (0, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (0, (1 << 64) - 1),
}

_LARGEST_BIAS = 1000

_INTEGERS = frozenset({"max_tokens", "top_k", "logprobs", "seed"})


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log probability of a chosen token under the raw logits, and the likeliest alternatives (id, logprob)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Constraint(Protocol):
    """What an answer must be: says before each token which may come."""

    def mask(self) -> bytes:
        """One bit per token id, the lowest first: whether it may come next. Raises ZooError when that fails."""

    def accept(self, token_id: int) -> None:
        """Take a token of the answer. Raises ZooError for one that may not come."""

    @property
    def finished(self) -> bool:
        """Whether nothing more can come."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A request: its prompt, its output so far, and how much of both the cache holds.

    `num_cached_tokens`: tokens of the prompt that were known from other sequences; None until it runs.
    `prompt_logprobs`: of the prompt's tokens from the second on. `block_digests`: names of its blocks by content.
    `error`: why it ended, where that is not its own end.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    stop_token_ids: frozenset[int]
    max_tokens: int
    output_token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None
    block_digests: list[bytes] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    constraint: Constraint | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_uncomputed(self) -> int:
        """Tokens that are not in the cache yet."""
        return self.num_tokens - self.num_computed_tokens

    def wants_prompt_logits(self, start: int) -> bool:
        """Whether the logits of prompt tokens from position `start` on are wanted and not there yet."""
        return self.params.prompt_logprobs and max(start, len(self.prompt_logprobs)) < len(self.prompt_token_ids) - 1

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Tokens of prompt and output in a range of positions."""
        prompt = len(self.prompt_token_ids)
        return [
            *self.prompt_token_ids[start:stop],
            *self.output_token_ids[max(0, start - prompt) : max(0, stop - prompt)],
        ]

    def append(self, token_id: int) -> None:
        """Take a sampled token and decide whether it ends the sequence. An end token is not part of the output.

        Raises what the constraint raises.
        """
        if token_id in self.stop_token_ids:
            self.finish_reason = "stop"
            return
        self.output_token_ids.append(token_id)
        if self.constraint is not None:
            self.constraint.accept(token_id)
        if len(self.output_token_ids) >= self.max_tokens:
            self.finish_reason = "length"
        if self.constraint is not None and self.constraint.finished:
            self.finish_reason = "stop"
