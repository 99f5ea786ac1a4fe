"""The neutral format, which a grammar forces where a request demands a call: a JSON array of calls and nothing else.

`[{"name": "get_weather", "arguments": {...}}, ...]`, with the keys in this order and only inside a grammar: so every
model can be made to call a tool, whatever format it was trained on.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from zoo.chat.deltas import Delta, TextDelta, ToolCallDelta, new_call_id

_HEAD = re.compile(r'\s*[\[,]?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
_LONGEST_HEAD = 1024


class PlainCalls:
    """Parser of the neutral format. Text that does not begin as a call is text to its end."""

    def __init__(self) -> None:
        self._held = ""
        self._index = -1
        self._state: Literal["head", "arguments", "between", "text"] = "head"
        self._depth = 0
        self._quoted = self._escaped = False

    def push(self, text: str) -> list[Delta]:
        """Take the next text of the answer; return what is certain by now."""
        self._held += text
        out: list[Delta] = []
        while self._held and self._advance(out):
            pass
        return out

    def flush(self) -> list[Delta]:
        """End the answer. A head that was cut short is text; arguments that were cut stay as they came."""
        held, self._held = self._held, ""
        return [TextDelta(held)] if held.strip() and self._index < 0 else []

    def _advance(self, out: list[Delta]) -> bool:
        """Go on by one state; False: more text is needed."""
        if self._state == "text":
            out.append(TextDelta(self._held))
            self._held = ""
            return False
        if self._state == "head":
            return self._head(out)
        if self._state == "arguments":
            return self._arguments(out)
        self._held = self._held.lstrip(" \t\r\n}")  # the end of the call; then "," and the next one, or "]"
        if self._held:
            self._state = "head" if self._held[0] == "," else "between"
        if self._state == "between":
            self._held = ""
        return bool(self._held)

    def _head(self, out: list[Delta]) -> bool:
        found = _HEAD.match(self._held)
        if found is None:
            if self._index < 0 and (self._held.strip()[:1] not in ("", "[", "{") or len(self._held) > _LONGEST_HEAD):
                self._state = "text"
                return True
            return False
        self._index += 1
        out.append(ToolCallDelta(self._index, new_call_id(), json.loads(found[1])))
        self._held = self._held[found.end() :]
        self._state, self._depth, self._quoted, self._escaped = "arguments", 0, False, False
        return True

    def _arguments(self, out: list[Delta]) -> bool:
        for position, char in enumerate(self._held):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._quoted = False
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    out.append(ToolCallDelta(self._index, arguments=self._held[: position + 1]))
                    self._held, self._state = self._held[position + 1 :], "between"
                    return True
        out.append(ToolCallDelta(self._index, arguments=self._held))
        self._held = ""
        return False
