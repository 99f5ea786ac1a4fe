"""What a GGUF file says about its vocabulary, checked: the keys `tokenizer.ggml.*`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from zoo.errors import TokenizerError
from zoo.tokenizer.pieces import byte_token
from zoo.tokenizer.special import END_SPELLINGS, looks_like_control

if TYPE_CHECKING:
    from zoo.source import ModelSource

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_NONE = (1 << 32) - 1  # -1 written as a u32: converters' "no such token"
_PREFIX = "tokenizer.ggml."
_REMAKE = "the file is damaged or was made by a faulty converter: fetch another or convert the model again"


class Keys:
    """Typed access to the tokenizer's keys. Each method raises TokenizerError naming file and key for a wrong value."""

    def __init__(self, source: ModelSource) -> None:
        self._metadata: Mapping[str, Any] = source.metadata
        self._path = source.path
        self.tokens: list[str] = self._tokens()
        self.ids = self._ids()

    def fail(self, key: str, message: str, *, remedy: str = _REMAKE) -> NoReturn:
        """Raise the TokenizerError that begins with file and key."""
        raise TokenizerError(f"{self.where(key)} {message}", remedy=remedy)

    def where(self, key: str) -> str:
        """File and key, for messages."""
        return f"{self._path}: {_PREFIX}{key}"

    def text(self, key: str) -> str | None:
        """A string; None where there is none."""
        value = self._metadata.get(_PREFIX + key)
        if value is not None and not isinstance(value, str):
            self.fail(key, f"is {value!r}, no string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A bool; `default` where there is none."""
        value = self._metadata.get(_PREFIX + key, default)
        if not isinstance(value, bool):
            self.fail(key, f"is {value!r}, no bool")
        return value

    def id(self, role: str, default: int | None = None) -> int | None:
        """The id `{role}_token_id`. `default` counts only where the token it names is spelled as a special one is."""
        key = f"{role}_token_id"
        value = self._metadata.get(_PREFIX + key)
        if value is None:
            if default is not None and default < len(self.tokens):
                spelling = self.tokens[default]
                return default if spelling.startswith("<") and spelling.endswith(">") else None
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(key, f"is {value!r}, no token id")
        if value in (_NONE, -1):
            return None
        if not 0 <= value < len(self.tokens):
            remedy = f"say the right id with --set {_PREFIX}{key}=ID"
            self.fail(key, f"is {value}, but the vocabulary has {len(self.tokens)} tokens", remedy=remedy)
        return value

    def numbers(self, key: str) -> np.ndarray[Any, np.dtype[Any]] | None:
        """An array of numbers [any length]; None where there is none."""
        value = self._metadata.get(_PREFIX + key)
        if value is None:
            return None
        if isinstance(value, str) or not isinstance(value, Sequence):
            self.fail(key, f"is {value!r}, no array")
        try:
            array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
        except (TypeError, ValueError):
            array = np.empty(0, np.object_)
        if array.dtype.kind not in "iuf":
            self.fail(key, "is no array of numbers")
        return array

    def strings(self, key: str) -> list[str]:
        """An array of strings, which must be there."""
        value = self._metadata.get(_PREFIX + key)
        if value is None:
            self.fail(key, "is missing")
        if isinstance(value, str) or not isinstance(value, Sequence):
            self.fail(key, f"is {value!r}, no array of strings")
        items = list(value)
        if items and not isinstance(items[0], str):
            self.fail(key, "is an array of numbers, not of strings")
        return items

    @cached_property
    def types(self) -> bytes:
        """The type of each token: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE, one byte a token.

        Tokens that end a generation or are written `<|name|>` are CONTROL whatever the file calls them; BYTE are only
        those written `<0xNN>`.
        """
        given = self.numbers("token_type")
        if given is None:
            types = self._guessed_types()
        else:
            if len(given) != len(self.tokens):
                self.fail("token_type", f"has {len(given)} entries for {len(self.tokens)} tokens")
            known = (given >= NORMAL) & (given <= BYTE)
            if not known.all():
                wrong = int(np.flatnonzero(~known)[0])
                self.fail("token_type", f"gives token {wrong} the type {given[wrong]}, not {NORMAL} to {BYTE}")
            types = given.astype(np.uint8)
        for id in np.flatnonzero(types == BYTE).tolist():
            if byte_token(self.tokens[id]) is None:
                types[id] = NORMAL
        defined = np.flatnonzero(types == USER_DEFINED).tolist()
        for id in (*defined, *(self.ids[spelling] for spelling in END_SPELLINGS if spelling in self.ids)):
            if types[id] in (NORMAL, USER_DEFINED) and looks_like_control(self.tokens[id]):
                types[id] = CONTROL
        return types.tobytes()

    def of_type(self, *types: int) -> list[int]:
        """The ids of all tokens of these types, ascending."""
        kinds = np.frombuffer(self.types, np.uint8)
        found: list[int] = np.flatnonzero(np.isin(kinds, types)).tolist()
        return found

    def scores(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The score of each token, float64 [tokens]."""
        scores = self.numbers("scores")
        if scores is None:
            self.fail("scores", "is missing, and a SentencePiece vocabulary needs it")
        if len(scores) != len(self.tokens):
            self.fail("scores", f"has {len(scores)} entries for {len(self.tokens)} tokens")
        scores = scores.astype(np.float64)
        if np.isnan(scores).any():
            self.fail("scores", f"gives token {int(np.flatnonzero(np.isnan(scores))[0])} no number")
        return scores

    def merges(self) -> list[tuple[str, str]]:
        """The merges, the most urgent first. A merge is cut at its first space that is not its first character."""
        pairs = []
        for index, merge in enumerate(self.strings("merges")):
            cut = merge.find(" ", 1)
            if cut < 0 or cut + 1 == len(merge):
                self.fail("merges", f"has {merge!r} as entry {index}, not two tokens with a space between")
            pairs.append((merge[:cut], merge[cut + 1 :]))
        return pairs

    def byte_ids(self) -> list[int]:
        """The ids of `<0x00>` to `<0xFF>`; an empty list where the vocabulary has none of them."""
        found = [self.ids.get(f"<0x{byte:02X}>") for byte in range(256)]
        ids = [id for id in found if id is not None]
        if ids and len(ids) < 256:
            self.fail("tokens", f"has {len(ids)} byte tokens, not 256: <0x{found.index(None):02X}> is missing")
        return ids

    def _tokens(self) -> list[str]:
        if self.text("model") is None:
            remedy = "use a GGUF file with a vocabulary, or the Hugging Face directory of the model"
            self.fail("model", "is missing: the file has no tokenizer", remedy=remedy)
        tokens = self.strings("tokens")
        if not tokens:
            self.fail("tokens", "is empty")
        return tokens

    def _ids(self) -> dict[str, int]:
        ids = dict(zip(self.tokens, range(len(self.tokens)), strict=True))
        if len(ids) < len(self.tokens):
            for id, token in enumerate(self.tokens):
                if token and ids[token] != id:
                    self.fail("tokens", f"has {token!r} twice, as ids {id} and {ids[token]}")
        ids.pop("", None)
        return ids

    def _guessed_types(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        types = np.full(len(self.tokens), NORMAL, np.uint8)
        for role in ("bos", "eos", "padding"):
            if (id := self.id(role)) is not None:
                types[id] = CONTROL
        if (id := self.id("unknown")) is not None:
            types[id] = UNKNOWN
        for id, token in enumerate(self.tokens):
            if byte_token(token) is not None:
                types[id] = BYTE
        return types
