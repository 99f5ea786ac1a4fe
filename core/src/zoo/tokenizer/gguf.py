"""Tokenizers from the metadata of a GGUF file: `tokenizer.ggml.*`.

Ids equal llama.cpp's, except where that is known to differ from the model's own tokenizer: text never becomes a control
token by merging, Qwen's text is composed (NFC) first, and the case-aware patterns are those of the models' makers.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from zoo.errors import TokenizerError
from zoo.tokenizer.base import SpecialIds, Tokenizer, Vocabulary
from zoo.tokenizer.keys import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Keys
from zoo.tokenizer.merge import Merger
from zoo.tokenizer.pieces import SPACE, byte_alphabet, byte_level_piece, byte_token, raw_piece, spaced_piece
from zoo.tokenizer.pretokenizers import PreTokenizer, PreTokenizers
from zoo.tokenizer.special import Matcher, Special, end_ids

if TYPE_CHECKING:
    from zoo.source import ModelSource

Encode = Callable[[str], list[int]]
_ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
# Bytes that occur in no UTF-8: a vocabulary may lack them.
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}


def load_gguf(source: ModelSource, extra_pre: Mapping[str, Sequence[str]]) -> Tokenizer:
    """The tokenizer of a GGUF file; see `zoo.tokenizer.load_tokenizer`."""
    keys = Keys(source)
    match keys.text("model"):
        case "llama":
            return _sentencepiece(keys, phi3=source.metadata.get("general.architecture") in ("phi3", "phimoe"))
        case "gpt2":
            return _byte_level(keys, extra_pre)
        case "gemma4":
            return _gemma4(keys)
        case model:
            keys.fail(
                "model",
                f"is {model!r}, but zoo reads the kinds llama, gpt2 and gemma4 from GGUF",
                remedy="use the Hugging Face directory of the model",
            )


def _sentencepiece(keys: Keys, *, phi3: bool) -> Tokenizer:
    """SentencePiece BPE. A space goes before text at the start and after every special token, as in llama.cpp."""
    prefix = SPACE if keys.flag("add_space_prefix", True) else ""
    costs = (-keys.scores()).tolist()
    ids = _plain_ids(keys)

    def cost(left: str, right: str) -> float | None:
        id = ids.get(left + right)
        return None if id is None else float(costs[id])

    unk = keys.id("unknown", 0)
    merger = Merger(cost, ids, byte_ids=keys.byte_ids(), unk_id=unk)
    special = _special_ids(keys, bos=1, eos=2, unk=unk, add_bos=True)
    # Phi-3's tokens swallow white space behind them. GGUF has no key for that.
    stripping = frozenset(keys.of_type(CONTROL, USER_DEFINED) if phi3 else ()) - {
        keys.ids.get(spelling, -1) for spelling in ("<unk>", "<s>", "<|endoftext|>")
    }
    return _tokenizer(
        keys,
        special,
        lambda text: merger.encode(prefix + text.replace(" ", SPACE)),
        spaced_piece,
        kind="spm",
        pre=keys.text("pre") or "",
        strip_space=bool(prefix),
        stripping=stripping,
    )


def _byte_level(keys: Keys, extra_pre: Mapping[str, Sequence[str]]) -> Tokenizer:
    """Byte-level BPE with a pre-tokeniser."""
    pre = _pre_tokenizer(keys, PreTokenizers(extra_pre))
    alphabet = byte_alphabet()
    ids = _plain_ids(keys)
    library = Library(_bpe(keys, ids, ignore_merges=pre.ignore_merges))
    try:
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    except Exception as problem:  # the library has no narrower class
        raise TokenizerError(
            f"a pattern of the pre-tokeniser {pre.name!r} is broken: {problem}",
            remedy="correct the plugin that adds it",
        ) from None
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    missing = {byte for character, byte in alphabet.items() if character not in ids} - _NEVER

    def encode(text: str) -> list[int]:
        if pre.nfc:
            text = unicodedata.normalize("NFC", text)
        if missing and (lost := missing.intersection(text.encode())):
            raise TokenizerError(
                f"the vocabulary has no token for the byte 0x{min(lost):02X}, which the text needs",
                remedy="use a complete vocabulary",
            )
        result: list[int] = library.encode(text, add_special_tokens=False).ids
        return result

    special = _special_ids(keys, bos=11, eos=11, unk=keys.id("unknown"), add_bos=pre.add_bos)
    return _tokenizer(
        keys,
        special,
        encode,
        lambda token: byte_level_piece(token, alphabet),
        kind="bpe",
        pre=pre.name,
        strip_space=False,
    )


def _gemma4(keys: Keys) -> Tokenizer:
    """Gemma 4: merges as in byte-level BPE, but on characters, with "▁" for spaces and byte tokens for the rest."""
    ids = _plain_ids(keys)
    ranks: dict[tuple[str, str], int] = {}
    for rank, pair in enumerate(keys.merges()):
        if "".join(pair) in ids:
            ranks.setdefault(pair, rank)
    merger = Merger(
        lambda left, right: ranks.get((left, right)), ids, byte_ids=keys.byte_ids(), unk_id=keys.id("unknown")
    )
    lines = re.compile(r"[^\n]+|\n+")

    def encode(text: str) -> list[int]:
        result: list[int] = []
        for line in lines.findall(text.replace(" ", SPACE)):
            # As in llama.cpp: a run of newlines that is a token is taken whole, without merges.
            newlines = ids.get(line) if line[0] == "\n" else None
            result += merger.encode(line) if newlines is None else [newlines]
        return result

    special = _special_ids(keys, bos=None, eos=None, unk=keys.id("unknown"), add_bos=True, override=True)
    return _tokenizer(keys, special, encode, spaced_piece, kind="bpe", pre="gemma4", strip_space=False)


def _plain_ids(keys: Keys) -> dict[str, int]:
    """Token -> id of what text may become: no control tokens, so that a user can spell none, no bytes, no fillers."""
    ids = dict(keys.ids)
    for id in keys.of_type(UNKNOWN, CONTROL, UNUSED, BYTE):
        ids.pop(keys.tokens[id], None)
    return ids


def _pre_tokenizer(keys: Keys, table: PreTokenizers) -> PreTokenizer:
    name = keys.text("pre")
    if name in (None, "", "default"):
        guess = table.guess(keys.ids, len(keys.tokens))
        how = "cuts text in a general way, which costs quality" if guess == "default" else f"looks like {guess!r}"
        warnings.warn(
            f"{keys.where('pre')} names no pre-tokeniser, and the vocabulary {how}; "
            "if answers are poor, say the right one with --set tokenizer.ggml.pre=NAME",
            UserWarning,
            stacklevel=2,
        )
        name = guess
    return table.find(str(name), where=keys.where("pre"))


def _bpe(keys: Keys, ids: dict[str, int], *, ignore_merges: bool) -> models.BPE:
    vocab = ids
    if re.search("[\ud800-\udfff]", "".join(ids)):
        # A token that is no UTF-8 cannot come of text, and the library takes none.
        vocab = {token: id for token, id in ids.items() if not re.search("[\ud800-\udfff]", token)}
    merges = keys.merges()
    # The library panics for some merges of unknown tokens.
    if not all(left in vocab and right in vocab and left + right in vocab for left, right in merges):
        merges = _reachable(keys, vocab, merges)
    return models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)


def _reachable(keys: Keys, vocab: Container[str], merges: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The merges that text may need: not those with control tokens, or of tokens that hold a space (written U+0120)."""
    result = []
    for index, (left, right) in enumerate(merges):
        tokens = (left, right, left + right)
        if all(token in vocab for token in tokens):
            result.append((left, right))
            continue
        for token in tokens:
            if token not in keys.ids and token.replace("Ġ", " ") not in keys.ids:
                keys.fail("merges", f"has {(left, right)} as entry {index}, of which {token!r} is no token")
    return result


def _special_ids(
    keys: Keys, *, bos: int | None, eos: int | None, unk: int | None, add_bos: bool, override: bool = False
) -> SpecialIds:
    """Ids with a role. `bos`, `eos`: for files that name none; `override`: add_bos holds whatever the file says."""
    bos, eos = keys.id("bos", bos), keys.id("eos", eos)
    wanted = {"bos": add_bos if override else keys.flag("add_bos_token", add_bos and bos is not None)}
    wanted["eos"] = keys.flag("add_eos_token", False)
    for role, id in (("bos", bos), ("eos", eos)):
        if wanted[role] and id is None:
            remedy = f"say its id with --set tokenizer.ggml.{role}_token_id=ID"
            keys.fail(f"add_{role}_token", f"is true, but there is no {role}_token_id", remedy=remedy)
    controls = {keys.tokens[id] for id in keys.of_type(CONTROL)}
    ends = {id for role in _ENDS if (id := keys.id(role)) is not None} | ({eos} if eos is not None else set())
    return SpecialIds(
        bos=bos,
        eos=eos,
        unk=unk,
        pad=keys.id("padding"),
        eog=frozenset(ends | end_ids(keys.ids, controls)),
        add_bos=wanted["bos"],
        add_eos=wanted["eos"],
    )


def _tokenizer(
    keys: Keys,
    special: SpecialIds,
    encode: Encode,
    piece: Callable[[str], bytes],
    *,
    kind: str,
    pre: str,
    strip_space: bool,
    stripping: frozenset[int] = frozenset(),
) -> Tokenizer:
    """Put the parts together.

    `encode`: ids of text without special tokens; `piece`: bytes of a normal token; `stripping`: ids of tokens that
    swallow the white space behind them.
    """
    tokens, types = keys.tokens, keys.types

    def specials(*kinds: int) -> dict[str, Special]:
        return {tokens[id]: Special(id, rstrip=id in stripping) for id in keys.of_type(*kinds) if tokens[id]}

    defined = Matcher(specials(USER_DEFINED))

    def run(text: str, _: bool) -> list[int]:
        ids: list[int] = []
        done = 0
        for begin, end, id in defined.matches(text, [(0, len(text))]):
            if begin > done:
                ids += encode(text[done:begin])
            ids.append(id)
            done = end
        return ids + encode(text[done:]) if done < len(text) else ids

    def piece_of(id: int) -> bytes:
        if types[id] == NORMAL:
            return piece(tokens[id])
        if types[id] == BYTE and (byte := byte_token(tokens[id])) is not None:
            return byte
        return raw_piece(tokens[id])

    suppressed = keys.numbers("suppress_tokens")
    unused = frozenset(keys.of_type(UNUSED))
    vocabulary = Vocabulary(
        tokens=tokens,
        ids=keys.ids,
        controls=specials(CONTROL, UNKNOWN),
        hidden=frozenset(keys.of_type(CONTROL, UNKNOWN)) | unused,
        suppressed=unused | frozenset(() if suppressed is None else suppressed.tolist()),
        piece=piece_of,
    )
    return Tokenizer(vocabulary, special, run, kind=kind, pre=pre, strip_space=strip_space)
