"""Keeping what users write from becoming control tokens.

Before a template runs, control spellings in the conversation are replaced by single characters, their stand-ins;
afterwards they are put back, and whatever was hidden is reported as plain text. Stand-ins are rare ideographs: unlike
private-use characters they are printable, so repr() leaves them alone, and they have no case. A user's own ideographs
of that block get stand-ins too, and so come out as they were. A shield hides at one of three levels:

- WHOLE: whole spellings, the longest at each place, as tokenizers match them.
- EDGES: also a character of a partial spelling at either end of each string, so that two strings which a template joins
  (the parts of one message, say) do not make a whole one.
- STARTS: also every character that begins a spelling, so that a template which deletes or changes text inside a string
  does not make one either.

A character that hid nothing in the end is put back without leaving a seam in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from enum import IntEnum
from itertools import groupby
from typing import Any, TypeAlias

from zoo.chat.limits import LimitExceeded

Segments: TypeAlias = list[tuple[str, bool]]
_FIRST, _LAST = 0x3400, 0x4DBF  # CJK Unified Ideographs Extension A


class Level(IntEnum):
    """How much a shield hides: see the module's docstring."""

    WHOLE = 0
    EDGES = 1
    STARTS = 2


class Spellings:
    """The control spellings of one model, prepared for one template.

    `taken` is text whose characters cannot be stand-ins: the template. `inspected` are strings that the template looks
    for; their beginnings stay visible.
    """

    def __init__(self, spellings: Collection[str], *, taken: str, inspected: Collection[str] = ()) -> None:
        self.all = frozenset(spellings) - {""}
        taken += "".join(self.all)
        self.reserve = "".join(chr(code) for code in range(_FIRST, _LAST + 1) if chr(code) not in taken)
        self.whole = _longest_match(self.all)
        self.secret = re.compile(f"[{re.escape(self.reserve)}]") if self.reserve else re.compile("(?!)")
        firsts = {spelling[0] for spelling in self.all if _hideable(spelling[0])}
        shown = "|".join(re.escape(text) for text in inspected if text[0] in firsts)
        beginnings = f"[{re.escape(''.join(firsts))}]" if firsts else "(?!)"
        self.starts = re.compile((f"(?!{shown})" if shown else "") + beginnings)
        self._heads = {spelling[:end] for spelling in self.all for end in range(1, len(spelling))}
        self._tails = {spelling[start:] for spelling in self.all for start in range(1, len(spelling))}
        self._joined = "\0".join(self.all)
        self._longest = max(map(len, self.all), default=0)

    def edges(self, text: str) -> Iterator[int]:
        """Positions in `text` whose character, once hidden, stops a spelling that reaches over an end of `text`."""
        reach = min(self._longest - 1, len(text))
        for size in range(1, reach + 1):
            if text[-size:] in self._heads:
                yield len(text) - size
            if text[:size] in self._tails:
                yield size - 1
        # `<` + text + `>` in the template; plain words stay, for templates write `<|` + role + `|>` on purpose.
        if 0 < len(text) < self._longest and not text.isalnum() and text in self._joined:
            yield next((at for at, character in enumerate(text) if not character.isalnum()), 0)


class Shield:
    """What is hidden during one render: a stand-in character for each hidden string."""

    def __init__(self, spellings: Spellings, level: Level) -> None:
        self._spellings = spellings
        self._level = level
        self._stand_ins: dict[str, str] = {}
        self._hidden: dict[int, str] = {}
        self.partial = False  # a partial spelling was seen, hidden or not

    def hide(self, text: str, visible: Collection[str] = ()) -> str:
        """Return `text` with all that could become a control token replaced, except the spellings in `visible`.

        Raises LimitExceeded through `_stand_in` when a conversation holds thousands of different spellings.
        """
        return self._hide(self._spellings.secret.sub(self._cover, text), visible)

    def _hide(self, text: str, visible: Collection[str] = ()) -> str:
        spellings = self._spellings
        covered = spellings.whole.sub(self._cover, text)
        edges = sorted({at for at in spellings.edges(covered) if _hideable(covered[at])})
        self.partial = self.partial or bool(edges or spellings.starts.search(covered))
        if self._level >= Level.EDGES:
            for at in edges:
                covered = covered[:at] + self._stand_in(covered[at]) + covered[at + 1 :]
        if self._level >= Level.STARTS:
            covered = spellings.starts.sub(self._cover, covered)
        for spelling in visible:
            if spelling in self._stand_ins:
                covered = covered.replace(self._stand_ins[spelling], spelling)
        return covered

    def reveal(self, text: str) -> str:
        """Return `text` with everything hidden put back."""
        return text.translate(self._hidden)

    def rewrite(self, text: str, change: Callable[[str], str]) -> str:
        """Apply `change` to what each stand-in in `text` stands for; an unchanged one stays, a changed one is text."""

        def written(match: re.Match[str]) -> str:
            hidden = self._hidden.get(ord(match[0]))
            if hidden is None:
                return match[0]
            changed = change(hidden)
            return match[0] if changed == hidden else self._spellings.whole.sub(self._cover, changed)

        return self._spellings.secret.sub(written, text)

    def from_json(self, text: str) -> Any:
        r"""Decode JSON that may hold stand-ins; escapes in it (`\u003c`) cannot bring forth control spellings."""

        def keep(escape: re.Match[str]) -> str:
            character = chr(int(escape[1], 16)) if escape[1] else ""
            return self._stand_in(character) if self._spellings.secret.fullmatch(character) else escape[0]

        return self._hide_all(json.loads(re.sub(r"\\(?:u([0-9a-fA-F]{4})|.)", keep, text)))

    def _hide_all(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, dict):
            return {self._hide(key): self._hide_all(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._hide_all(item) for item in value]
        return value

    def as_json(self, text: str, *, ensure_ascii: bool) -> str:
        """Finish JSON `text` that was written with ensure_ascii=False: what stand-ins hide is escaped as JSON does."""

        def escape(plain: str) -> str:
            return json.dumps(plain, ensure_ascii=ensure_ascii)[1:-1]

        text = self.rewrite(text, escape)
        if not ensure_ascii:
            return text
        return re.sub(
            r"[^\x00-\x7e]", lambda found: found[0] if ord(found[0]) in self._hidden else escape(found[0]), text
        )

    def segments(self, text: str) -> Segments:
        """Split rendered `text` into (text, parse_special): False for control spellings that touch hidden text."""
        pieces: Segments = []
        end = 0
        for match in self._spellings.whole.finditer(text):
            pieces += self._between(text[end : match.start()])
            pieces.append((match[0], True))
            end = match.end()
        pieces += self._between(text[end:])
        return [
            ("".join(piece for piece, _ in same), special)
            for special, same in groupby((piece for piece in pieces if piece[0]), key=lambda piece: piece[1])
        ]

    def _between(self, text: str) -> Iterator[tuple[str, bool]]:
        text = self.reveal(text)
        end = 0
        for match in self._spellings.whole.finditer(text):
            yield text[end : match.start()], True
            yield match[0], False
            end = match.end()
        yield text[end:], True

    def _cover(self, match: re.Match[str]) -> str:
        return self._stand_in(match[0])

    def _stand_in(self, hidden: str) -> str:
        found = self._stand_ins.get(hidden)
        if found is None:
            if len(self._stand_ins) >= len(self._spellings.reserve):
                raise LimitExceeded(f"the conversation holds more than {len(self._stand_ins)} control spellings")
            found = self._stand_ins[hidden] = self._spellings.reserve[len(self._stand_ins)]
            self._hidden[ord(found)] = hidden
        return found


def _hideable(character: str) -> bool:
    """Letters, digits and white space stay: templates compare words and trim blanks."""
    return not character.isalnum() and not character.isspace()


def _longest_match(words: Collection[str]) -> re.Pattern[str]:
    """Compile a pattern that finds the longest of `words` at each place.

    It branches like a tree: an alternation of thousands of words would try each of them at every `<` of a text.
    """
    if not words:
        return re.compile("(?!)")
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_pattern(root))


def _pattern(node: dict[str, Any]) -> str:
    branches = []
    for character, child in node.items():
        if not character:
            continue
        literal = character
        while len(child) == 1 and "" not in child:
            ((character, child),) = child.items()
            literal += character
        branches.append(re.escape(literal) + (_pattern(child) if child.keys() - {""} else ""))
    pattern = f"(?:{'|'.join(branches)})"
    return pattern + "?" if "" in node else pattern
