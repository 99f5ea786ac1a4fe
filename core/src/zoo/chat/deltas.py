"""What a tool-call parser gives: pieces of text and of calls."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of the answer outside of calls; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of one call. `index` counts the calls of an answer from 0.

    The first delta of an index has `id` and `name` and may have arguments; later ones have only more `arguments`, JSON
    text to be joined.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


Delta: TypeAlias = TextDelta | ToolCallDelta


def new_call_id() -> str:
    """An id for a call whose format has none."""
    return f"call_{secrets.token_hex(12)}"
