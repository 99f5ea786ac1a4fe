"""From tokens to text that may be shown: whole characters, and nothing that could still become a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.tokenizer import TokenStream


class OutputText:
    """The growing text of one sequence. Text that may be the beginning of a stop string is held back until decided."""

    def __init__(self, stream: TokenStream, stops: Sequence[str]) -> None:
        self._stream = stream
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Text that became certain with this token; sets `stopped` when a stop string is complete."""
        text = self._stream.push(token_id)
        return self._take(text) if self._stops else text

    def flush(self) -> str:
        """The rest, once no more tokens come."""
        if self.stopped:
            return ""
        text = self._take(self._stream.flush())
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _take(self, text: str) -> str:
        self._held += text
        # What is complete first, and of those the longest: so the text does not depend on how tokens cut it.
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)[1]], ""
            return certain
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
