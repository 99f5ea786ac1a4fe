"""Pieces that the parsers of tool calls are made of: finding tags and the end of JSON in text that still streams."""

from __future__ import annotations

from collections.abc import Sequence


class JsonValue:
    """Finds the end of one JSON value, however it is cut; says nothing of whether it is valid inside."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = self._begun = False

    @property
    def quoted(self) -> bool:
        """Whether the text so far ends inside a string."""
        return self._quoted

    def end(self, text: str) -> int | None:
        """Where the value ends in `text`, which goes on from the last call; None: it does not end there.

        A number or word ends before what follows it.
        """
        for position, char in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._quoted = False
                    if not self._depth:
                        return position + 1
            elif char == '"':
                self._quoted = self._begun = True
            elif char in "{[":
                self._depth += 1
                self._begun = True
            elif char in "}]":
                if not self._depth:
                    return position
                self._depth -= 1
                if not self._depth:
                    return position + 1
            elif not self._depth and self._begun and char in ", \t\r\n":
                return position
            elif not char.isspace():
                self._begun = True
        return None


def first_of(text: str, tags: Sequence[str]) -> tuple[int, str] | None:
    """Place and spelling of the earliest tag in `text`; of two at one place the longer. None: there is none."""
    found = [(text.find(tag), -len(tag), tag) for tag in tags if tag in text]
    return (lambda best: (best[0], best[2]))(min(found)) if found else None


def held_back(text: str, tags: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a tag, white space before it included."""
    for size in range(min(len(text), max(map(len, tags)) - 1), 0, -1):
        if any(tag.startswith(text[-size:]) for tag in tags):
            return len(text) - len(text[:-size].rstrip())
    return len(text) - len(text.rstrip())
