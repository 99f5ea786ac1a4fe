"""Tokens that text spells as a whole: control tokens, user-defined ones, and those that end a generation."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

# Ends of a turn or text, by spelling: a model file names one end token, chat models use several. The last lines fill or
# separate files in code completion, after which no answer goes on. The list follows llama.cpp's.
END_SPELLINGS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "<|EOT|>", "[EOT]", "[EOS]", "<|end_of_text|>"),
    *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<reponame>"),
    "<|file_sep|>",
)
# A control token in chat vocabularies, a piece of HTML in others: an end only where the vocabulary says control.
_AMBIGUOUS = frozenset({"</s>"})


@dataclass(frozen=True, slots=True)
class Special:
    """A token matched whole. `lstrip`, `rstrip`: it swallows white space beside it; `single_word`: not in a word."""

    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def looks_like_control(spelling: str) -> bool:
    """Whether a token that its file calls ordinary is a control token all the same: <|user|>, <｜User｜>."""
    if spelling in END_SPELLINGS:
        return spelling not in _AMBIGUOUS
    return len(spelling) > 4 and spelling.startswith(("<|", "<｜")) and spelling.endswith(("|>", "｜>"))


def end_ids(ids: Mapping[str, int], controls: Container[str]) -> set[int]:
    """The ids of tokens that end a generation by their spelling. `ids`: token -> id; `controls`: control spellings."""
    found = {spelling for spelling in END_SPELLINGS if spelling in ids and spelling in controls}
    if found & {"<|call|>", "<|calls|>"} and found & {"<|return|>", "<|flush|>"}:
        found.discard("<|end|>")  # in these formats it ends a message, not the answer
    if "<|tool_response>" in found:
        found.discard("</s>")
    return {ids[spelling] for spelling in found}


class Matcher:
    """Finds the spellings of special tokens in text: the leftmost first, the longest of those that begin there."""

    def __init__(self, specials: Mapping[str, Special]) -> None:
        self._specials = specials
        # Candidates are looked up by length behind their first two characters: vocabularies have thousands of them, and
        # an alternation of thousands is slow at each "<" of a text.
        heads = {spelling[:2] for spelling in specials}
        self._lengths = {
            head: sorted({len(s) for s in specials if s[:2] == head or (len(s) == 1 and s == head[0])}, reverse=True)
            for head in heads
        }
        ordered = sorted(heads, key=len, reverse=True)
        self._head = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def matches(self, text: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
        """(begin, end, id) of every match whose spelling lies in one of the ascending `spans` (begin, end) of the text.

        White space that a token swallows is part of its match, and may lie outside the spans.
        """
        if self._head is None:
            return
        done = 0
        for start, stop in spans:
            position = max(start, done)
            while (head := self._head.search(text, position, stop)) is not None:
                begin = head.start()
                spelling, special = self._longest(text, begin, stop, head.group())
                if special is None:
                    position = begin + 1
                    continue
                end = begin + len(spelling)
                while special.lstrip and begin > done and text[begin - 1].isspace():
                    begin -= 1
                while special.rstrip and end < len(text) and text[end].isspace():
                    end += 1
                yield begin, end, special.id
                done = position = end

    def _longest(self, text: str, begin: int, stop: int, head: str) -> tuple[str, Special | None]:
        for length in self._lengths[head]:
            spelling = text[begin : begin + length]
            special = self._specials.get(spelling)
            if special is None or begin + length > stop:
                continue
            if special.single_word and _touches_word(text, begin, begin + length):
                continue
            return spelling, special
        return "", None


def _touches_word(text: str, begin: int, end: int) -> bool:
    return bool(re.match(r"\w", text[begin - 1 : begin])) or bool(re.match(r"\w", text[end : end + 1]))
