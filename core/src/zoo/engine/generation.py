"""One request from tokens to text: drives a sequence through the engine and turns what comes out into pieces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as Items

from zoo.chat.reasoning import ReasoningSplitter
from zoo.engine.engine import Engine
from zoo.engine.result import Generation, Piece, Timings
from zoo.engine.sequence import Sequence
from zoo.engine.text import OutputText


class Request:
    """A sequence with its text and its clock."""

    def __init__(self, sequence: Sequence, text: OutputText, splitter: ReasoningSplitter | None, load_s: float) -> None:
        self.sequence = sequence
        self._text = text
        self._splitter = splitter
        self._load_s = load_s
        self._parts: dict[str, list[str]] = {"content": [], "reasoning": []}
        self._seen = 0
        self.done = False
        self.begin()

    def begin(self) -> None:
        """Start the clock."""
        self._started = self._first = self._last = time.perf_counter()

    @property
    def pending(self) -> bool:
        """Whether the engine went on with the sequence since `advance` looked."""
        return not self.done and (
            len(self.sequence.output_token_ids) > self._seen or self.sequence.finish_reason is not None
        )

    def advance(self, engine: Engine) -> Piece:
        """Take the tokens that the last steps added; stops the sequence at a stop string.

        Raises what ended the sequence, where that is an error.
        """
        if self.sequence.error is not None:
            self.done = True
            raise self.sequence.error
        seen = self._seen
        self._last = time.perf_counter()
        if self._seen == 0:
            self._first = self._last
        text = ""
        for token in self.sequence.output_token_ids[self._seen :]:
            text += self._text.push(token)
            self._seen += 1
            if self._text.stopped:
                # Another generator may have driven the engine past this token.
                del self.sequence.output_token_ids[self._seen :]
                self.sequence.finish_reason = "stop"
                engine.stop(self.sequence, "stop")
                break
        if self.sequence.finish_reason is not None:
            self.done = True
            text += self._text.flush()
            if self._text.stopped:
                self.sequence.finish_reason = "stop"
        return self._split(text, seen)

    def result(self) -> Generation:
        """The finished answer."""
        sequence = self.sequence
        assert sequence.finish_reason is not None
        count, prompt = len(sequence.output_token_ids), len(sequence.prompt_token_ids)
        first, rest = self._first - self._started, self._last - self._first
        return Generation(
            text="".join(self._parts["content"]),
            reasoning="".join(self._parts["reasoning"]),
            token_ids=tuple(sequence.output_token_ids),
            prompt_tokens=prompt,
            completion_tokens=count,
            finish_reason=sequence.finish_reason,
            logprobs=None if sequence.params.logprobs is None else tuple(sequence.logprobs[:count]),
            prompt_logprobs=tuple(sequence.prompt_logprobs) if sequence.params.prompt_logprobs else None,
            cached_tokens=sequence.num_cached_tokens or 0,
            timings=Timings(
                load_s=self._load_s,
                first_token_s=first,
                prefill_tok_s=prompt / first if first else 0.0,
                decode_tok_s=(count - 1) / rest if rest and count > 1 else 0.0,
            ),
        )

    def _split(self, text: str, seen: int) -> Piece:
        if self._splitter is None:
            pieces = [("content", text)]
        else:
            pieces = [*self._splitter.push(text)]
            if self.sequence.finish_reason is not None:
                pieces += self._splitter.flush()
        out = {"content": "", "reasoning": ""}
        for kind, part in pieces:
            out[kind] += part
            self._parts[kind].append(part)
        sequence = self.sequence
        return Piece(
            out["content"],
            out["reasoning"],
            tuple(sequence.output_token_ids[seen : self._seen]),
            tuple(sequence.logprobs[seen : self._seen]),
            sequence.finish_reason if self.done else None,
        )


def run(engine: Engine, requests: Items[Request]) -> Iterator[tuple[Request, Piece]]:
    """Drive requests to their ends, yielding what each step adds. A caller that stops early aborts what is left."""
    for request in requests:
        request.begin()
        engine.add(request.sequence)
    try:
        while not all(request.done for request in requests):
            # The engine is shared: whoever drives it moves every sequence in it.
            if not any(request.pending for request in requests):
                engine.step()
            for request in requests:
                if request.pending:
                    yield request, request.advance(engine)
    finally:
        for request in requests:
            if request.sequence.finish_reason is None:
                engine.stop(request.sequence, "abort")
