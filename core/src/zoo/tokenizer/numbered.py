"""A vocabulary without words, for models that were never trained."""

from __future__ import annotations

from zoo.errors import TokenizerError
from zoo.tokenizer.base import SpecialIds, Tokenizer, Vocabulary


def numbered(size: int) -> Tokenizer:
    """Ids 0 to size - 1, each spelled as its number and a space: "17 ". Nothing ends a generation.

    `encode` raises TokenizerError for text that is anything else.
    """

    def encode(text: str, at_start: bool) -> list[int]:
        words = text.split()
        if any(not word.isdecimal() or int(word) >= size for word in words):
            raise TokenizerError("the model is synthetic and knows no words", remedy=f"write ids from 0 to {size - 1}")
        return [int(word) for word in words]

    tokens = [f"{i} " for i in range(size)]
    vocabulary = Vocabulary(
        tokens=tokens,
        ids={token: i for i, token in enumerate(tokens)},
        controls={},
        hidden=frozenset(),
        suppressed=frozenset(),
        piece=lambda i: tokens[i].encode(),
    )
    return Tokenizer(vocabulary, SpecialIds(), encode, kind="none")
