"""Merging of neighbours in plain Python, for vocabularies in SentencePiece's style.

SentencePiece's BPE names no merges: any two neighbours that together are a token may merge, the highest score first.
The `tokenizers` library needs the merges spelled out, half a million for a vocabulary of 262k, which takes seconds;
here the vocabulary itself is the table. Words repeat, so their ids are remembered.

Source of the algorithm: Sennrich et al. 2016 (arXiv:1508.07909) with SentencePiece's order of scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush

from zoo.errors import TokenizerError
from zoo.tokenizer.pieces import SPACE

_REMEMBERED_WORDS = 1 << 16
_LONGEST_REMEMBERED = 48

Cost = Callable[[str, str], float | None]


class Merger:
    """Text, its spaces written as "▁", to token ids.

    `cost(left, right)` orders the merges, the least first (of equal ones the leftmost); None: these two do not merge.
    `ids`: token -> id of the tokens that text may become. `byte_ids`: 256 ids of the byte tokens, or empty: then what
    has no token becomes `unk_id`.
    """

    def __init__(self, cost: Cost, ids: Mapping[str, int], *, byte_ids: Sequence[int], unk_id: int | None) -> None:
        self._cost = cost
        self._ids = ids
        self._byte_ids = byte_ids
        self._unk_id = unk_id
        self._words = _word_pattern(ids)
        self._remembered = lru_cache(maxsize=_REMEMBERED_WORDS)(self._merge)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Raises TokenizerError for a character that has neither token, bytes nor an unknown token."""
        ids: list[int] = []
        for word in self._words.findall(text):
            ids += self._remembered(word) if len(word) <= _LONGEST_REMEMBERED else self._merge(word)
        return ids

    def _merge(self, text: str) -> tuple[int, ...]:
        count = len(text)
        ends = list(range(1, count + 1))  # where the symbol that begins at i ends; 0: swallowed by the one before it
        before = list(range(-1, count))  # where the symbol before the one at i begins
        queue: list[tuple[float, int, int]] = []  # cost, begin and end of a merged pair
        for begin in range(count - 1):
            if (cost := self._cost(text[begin], text[begin + 1])) is not None:
                queue.append((cost, begin, begin + 2))
        heapify(queue)
        while queue:
            _, begin, end = heappop(queue)
            middle = ends[begin]
            if not middle or middle >= count or ends[middle] != end:
                continue  # one of the two has merged with another since
            ends[begin], ends[middle] = end, 0
            if end < count:
                before[end] = begin
                self._offer(queue, text, begin, end, ends[end])
            if begin:
                self._offer(queue, text, before[begin], begin, end)
        ids: list[int] = []
        begin = 0
        while begin < count:
            ids += self._symbol(text[begin : ends[begin]])
            begin = ends[begin]
        return tuple(ids)

    def _offer(self, queue: list[tuple[float, int, int]], text: str, begin: int, middle: int, end: int) -> None:
        if (cost := self._cost(text[begin:middle], text[middle:end])) is not None:
            heappush(queue, (cost, begin, end))

    def _symbol(self, symbol: str) -> Iterable[int]:
        if (token := self._ids.get(symbol)) is not None:
            return (token,)
        if self._byte_ids:
            return [self._byte_ids[byte] for byte in symbol.encode()]
        if self._unk_id is not None:
            return (self._unk_id,)
        raise TokenizerError(
            f"the vocabulary has no token for {symbol!r}, no byte tokens and no unknown token",
            remedy="leave the character out of the text, or use a complete vocabulary",
        )


def _word_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Words may be merged apart where no token crosses the border: before "▁", unless some token has "x▁" inside."""
    crossing = set(re.findall(f"([^{SPACE}\0]){SPACE}", "\0".join(tokens)))
    inside = f"|(?<=[{re.escape(''.join(sorted(crossing)))}]){SPACE}+" if crossing else ""
    return re.compile(f"{SPACE}*(?:[^{SPACE}]+{inside})+|{SPACE}+")
