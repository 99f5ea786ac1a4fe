"""Mistral's own tokenizer file, `tekken.json`: byte-level BPE whose merges are the order of the vocabulary.

The id of a token is its rank behind the special tokens, of which a file reserves a number. Any two neighbours that
together are a token may merge, the lowest rank first, as in tiktoken, for which the file is made.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from tokenizers import Regex, pre_tokenizers

from zoo.errors import TokenizerError
from zoo.tokenizer.base import SpecialIds, Tokenizer, Vocabulary
from zoo.tokenizer.hf import model_ends
from zoo.tokenizer.merge import Merger
from zoo.tokenizer.pieces import byte_alphabet, raw_piece
from zoo.tokenizer.special import Special

if TYPE_CHECKING:
    from zoo.source import ModelSource

FILE = "tekken.json"
_MAX_TOKENS = 1 << 24
_REMEMBERED = 1 << 16
# Files up to version 7 may leave these out, which are in this order then.
_SPECIALS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
_SPECIALS_UP_TO = 7


def load_tekken(source: ModelSource) -> Tokenizer:
    """The tokenizer of a directory with `tekken.json`. Raises TokenizerError where the file breaks its own rules."""
    file = _File(source)
    config = file.table("config")
    reserved = file.number(config, "default_num_special_tokens")
    size = file.number(config, "default_vocab_size")
    specials = file.specials(str(config.get("version")), reserved)
    words = file.words(size - reserved)
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    spelled = ["".join(spelling[byte] for byte in word) for word in words]
    controls = {text: Special(id) for id, text in enumerate(specials)}
    bos, eos = specials.index("<s>"), specials.index("</s>")

    def piece(id: int) -> bytes:
        return raw_piece(specials[id]) if id < reserved else words[id - reserved]

    ids = {token: reserved + rank for rank, token in enumerate(spelled)} | {
        t: entry.id for t, entry in controls.items()
    }
    special = SpecialIds(
        bos=bos,
        eos=eos,
        unk=controls["<unk>"].id if "<unk>" in controls else None,
        pad=controls["<pad>"].id if "<pad>" in controls else None,
        eog=frozenset(model_ends(source, eos)),
        add_bos=True,
    )
    vocabulary = Vocabulary(
        tokens=[*specials, *spelled],
        ids=ids,
        controls=controls,
        hidden=frozenset(range(reserved)),
        suppressed=frozenset(),
        piece=piece,
    )
    return Tokenizer(vocabulary, special, _encoder(file, config, spelled, reserved), kind="bpe", pre="tekken")


def _encoder(
    file: _File, config: dict[str, Any], spelled: Sequence[str], reserved: int
) -> Callable[[str, bool], list[int]]:
    """Ids of text without special tokens, which no text becomes: they are no words of the vocabulary."""
    pattern = str(config.get("pattern", "("))  # without one: no expression either
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception as problem:  # the library has no narrower class
        file.fail(f"config.pattern is {pattern[:80]!r}, which is no regular expression: {problem}")
    ranks = {token: rank for rank, token in enumerate(spelled)}
    merger = Merger(
        lambda left, right: ranks.get(left + right),
        {token: reserved + rank for token, rank in ranks.items()},
        byte_ids=(),
        unk_id=None,
    )
    spelling = {byte: character for character, byte in byte_alphabet().items()}

    @lru_cache(maxsize=_REMEMBERED)
    def word(text: str) -> tuple[int, ...]:
        token = "".join(spelling[byte] for byte in text.encode())
        rank = ranks.get(token)
        # As in tiktoken: a word that is a token is taken whole, whatever the merges would make of it.
        return tuple(merger.encode(token)) if rank is None else (reserved + rank,)

    def encode(text: str, at_start: bool) -> list[int]:
        return [id for part, _ in split.pre_tokenize_str(text) for id in word(part)]

    return encode


class _File:
    """The content of tekken.json, read with checks; every error names the file."""

    def __init__(self, source: ModelSource) -> None:
        self.where = f"{source.directory}/{FILE}"
        content = source.json(FILE)
        assert content is not None  # the caller has seen the file
        self._content = content

    def fail(self, message: str) -> NoReturn:
        """Raise the TokenizerError that begins with the file."""
        raise TokenizerError(f"{self.where}: {message}", remedy=f"fetch {FILE} again, or a tokenizer.json of the model")

    def table(self, key: str) -> dict[str, Any]:
        """An object of the file."""
        value = self._content.get(key)
        if not isinstance(value, dict):
            self.fail(f"{key} is a {type(value).__name__}, no object")
        return value

    def number(self, config: dict[str, Any], key: str) -> int:
        """A positive integer of `config`."""
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_TOKENS:
            self.fail(f"config.{key} is {value!r}, no size of a vocabulary")
        return value

    def specials(self, version: str, reserved: int) -> list[str]:
        """The special tokens by id; ids that are only reserved are spelled <SPECIAL_n>."""
        listed = self._content.get("special_tokens")
        if listed is None:
            number = re.match(r"v(\d+)", version)
            if number is None or int(number[1]) > _SPECIALS_UP_TO:
                self.fail(f"special_tokens is missing, which version {version!r} must have")
            names = list(_SPECIALS)
        else:
            names = [self._entry("special_tokens", listed, index, "token_str") for index in range(len(listed))]
        if len(names) > reserved:
            self.fail(f"special_tokens has {len(names)} entries, but {reserved} ids are reserved for them")
        names += [f"<SPECIAL_{id}>" for id in range(len(names), reserved)]
        if len(set(names)) < len(names) or "" in names:
            self.fail("special_tokens has a token twice, or one without a spelling")
        if "<s>" not in names or "</s>" not in names:
            self.fail("special_tokens lacks <s> or </s>")
        return names

    def words(self, count: int) -> list[bytes]:
        """The first `count` ordinary tokens; the first 256 are the bytes."""
        listed = self._content.get("vocab")
        if not isinstance(listed, list) or not 256 <= count <= len(listed):
            there = len(listed) if isinstance(listed, list) else "no"
            self.fail(f"vocab has {there} tokens, config asks for {count} (256 or more)")
        words = []
        for index in range(count):
            text = self._entry("vocab", listed, index, "token_bytes")
            try:
                words.append(binascii.a2b_base64(text, strict_mode=True))
            except (ValueError, binascii.Error):
                self.fail(f"vocab[{index}].token_bytes is {text[:80]!r}, no base64")
        if words[:256] != [bytes([byte]) for byte in range(256)]:
            self.fail("vocab does not begin with the 256 bytes in order")
        if len(set(words)) < len(words) or b"" in words:
            self.fail("vocab has a token twice, or an empty one")
        return words

    def _entry(self, key: str, listed: Any, index: int, field: str) -> str:
        entry = listed[index] if isinstance(listed, list) else None
        if not isinstance(entry, dict) or entry.get("rank") != index or not isinstance(entry.get(field), str):
            self.fail(f"{key}[{index}] is {str(entry)[:80]}, not the token of rank {index} with a {field}")
        text: str = entry[field]
        return text
