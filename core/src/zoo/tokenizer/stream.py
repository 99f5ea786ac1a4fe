"""Token ids to text, one token after the other, in whole characters."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Container, Iterable

_Utf8 = getincrementaldecoder("utf-8")


class TokenStream:
    """Decodes a growing answer. What `push` and `flush` return, joined, is the text of all ids.

    A character that spans tokens (bytes, pieces of an emoji) is held back until it is whole: at most 3 bytes. Bytes
    that are no UTF-8 become U+FFFD. Each push costs the length of its piece, whatever came before. `piece(id)`: bytes
    of a token; `hidden`: ids without text; `strip_space`: one space at the very start is left out.
    """

    def __init__(self, piece: Callable[[int], bytes], hidden: Container[int], *, strip_space: bool) -> None:
        self._piece = piece
        self._hidden = hidden
        self._strip_space = strip_space
        self._decoder = _Utf8(errors="replace")

    def push(self, id: int) -> str:
        """The text that this token completes: "" while a character is unfinished. Raises TokenizerError for id < 0."""
        return self.push_all((id,))

    def push_all(self, ids: Iterable[int]) -> str:
        """As `push` for several ids at once."""
        data = b"".join([self._piece(id) for id in ids if id not in self._hidden])
        return self._emit(data, final=False)

    def flush(self) -> str:
        """The end of the text: U+FFFD for a character that was never finished."""
        return self._emit(b"", final=True)

    def _emit(self, data: bytes, *, final: bool) -> str:
        text = self._decoder.decode(data, final)
        if text and self._strip_space:
            self._strip_space = False
            text = text.removeprefix(" ")
        return text
