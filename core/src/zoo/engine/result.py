"""What a generation gives back. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from zoo.engine.sequence import FinishReason, TokenLogprob


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds and tokens per second of one generation. `load_s`: loading the model, once."""

    load_s: float
    first_token_s: float
    prefill_tok_s: float
    decode_tok_s: float


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a streamed answer: `text` of the answer, `reasoning` of the thought before it. Either may be empty.

    `token_ids` and `logprobs` (if asked for) of the tokens that it took: their text may come in a later piece.
    `finish_reason`: None before the last piece.
    """

    text: str = ""
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished answer.

    `reasoning` is "" where the model does not think aloud. `logprobs` is None unless they were asked for.
    `cached_tokens`: tokens of the prompt that the cache knew.
    `finish_reason`: "stop" (an end token or a stop string), "length" (max_tokens or the context), "abort".
    """

    text: str
    reasoning: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)
    cached_tokens: int = 0
