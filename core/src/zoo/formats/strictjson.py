"""JSON from files of strangers: a key that comes twice, or nesting that exhausts the stack, is an error."""

from __future__ import annotations

import json
import re
from typing import Any

# A backslash that stands for itself, a pair that is one character, or half of a pair, which no text can hold.
_SURROGATES = re.compile(r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<lone>\\u[dD][89a-fA-F]..)")


def parse(data: bytes) -> Any:
    """Parse UTF-8 JSON. NaN and Infinity are read as floats, as Python writes them.

    Raises ValueError, its text saying what is wrong and where (line and column, or byte).
    """
    try:
        text = data.decode("utf-8")
        content = json.loads(text, object_pairs_hook=_unique)
    except UnicodeDecodeError as problem:
        raise ValueError(f"no UTF-8 at byte {problem.start}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if b"\\ud" in data or b"\\uD" in data:
        for match in _SURROGATES.finditer(text):
            if match["lone"]:
                raise ValueError(f"{match['lone']} at character {match.start()} is half a character")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} comes twice")
            seen.add(key)
    return result
