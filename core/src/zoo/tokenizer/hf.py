"""Tokenizers from `tokenizer.json` and the small files beside it, by the `tokenizers` library alone.

transformers is not asked: for some families its classes replace the pre-tokeniser of the file by another.
"""

from __future__ import annotations

import json
import secrets
import warnings
from collections.abc import Callable, Container, Iterable, Mapping
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, pre_tokenizers
from tokenizers import Tokenizer as Library

from zoo.errors import TokenizerError
from zoo.tokenizer.base import SpecialIds, Tokenizer, Vocabulary
from zoo.tokenizer.pieces import byte_alphabet, byte_level_piece, byte_token, raw_piece
from zoo.tokenizer.pretokenizers import PreTokenizers
from zoo.tokenizer.special import Matcher, Special, end_ids, looks_like_control

if TYPE_CHECKING:
    from zoo.source import ModelSource

FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_MAX_TOKENS = 1 << 24
_ROLES = ("bos", "eos", "unk", "pad")
_FETCH = "fetch the model again with all of its .json files"
_CONVERT = "make tokenizer.json with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
_OTHER_FILES = ("tokenizer.model", "vocab.json", "spiece.model", "qwen.tiktoken", "tiktoken.model")


def load_hf(source: ModelSource) -> Tokenizer:
    """The tokenizer of a Hugging Face directory; see `zoo.tokenizer.load_tokenizer`."""
    path = _find(source)
    library = _read(path)
    library.no_truncation()
    library.no_padding()
    config = {**(source.json("special_tokens_map.json") or {}), **(source.json(_CONFIG) or {})}
    _correct_tekken(library, path)
    _add_declared(library, config, path)
    roles = {role: _role(library, config, role, source) for role in _ROLES}
    controls = _mark_controls(library, config, roles)
    library.encode_special_tokens = True  # this class matches control tokens itself, where they may be
    ids = library.get_vocab(with_added_tokens=True)
    last = max(ids.values(), default=-1)
    if last >= _MAX_TOKENS:
        raise TokenizerError(f"{path}: has the token id {last}, more than {_MAX_TOKENS} allowed", remedy=_FETCH)
    tokens = [""] * (last + 1)
    for token, id in ids.items():
        tokens[id] = token
    hidden = frozenset(entry.id for entry in controls.values())
    piece, strip_space = _decoder(library, tokens, hidden, path)
    unk = roles["unk"] if roles["unk"] is not None else ids.get(getattr(library.model, "unk_token", None) or "")
    bos, eos = roles["bos"], roles["eos"]
    add_bos, add_eos = _added_around(library, config, bos, eos, path)
    special = SpecialIds(
        bos=bos,
        eos=eos,
        unk=unk,
        pad=roles["pad"],
        eog=frozenset(model_ends(source, eos) | end_ids(ids, controls)),
        add_bos=add_bos,
        add_eos=add_eos,
    )
    vocabulary = Vocabulary(
        tokens=tokens,
        ids=ids,
        controls=controls,
        hidden=hidden,
        suppressed=frozenset(range(len(tokens))).difference(ids.values()),
        piece=piece,
    )
    kind = type(library.model).__name__.lower()
    return Tokenizer(vocabulary, special, _encoder(library, controls, unk), kind=kind, strip_space=strip_space)


def _read(path: Path) -> Library:
    try:
        return Library.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:  # the library has no narrower class, and panics outside of Exception
        raise TokenizerError(f"{path}: no tokenizer that can be read: {problem}", remedy=_FETCH) from None


def _find(source: ModelSource) -> Path:
    directory: Path | None = source.directory
    if directory is not None and (path := directory / FILE).is_file():
        return path
    others = [name for name in _OTHER_FILES if directory is not None and (directory / name).is_file()]
    if others:
        raise TokenizerError(f"{directory} has {others[0]}, but no {FILE}", remedy=_CONVERT)
    raise TokenizerError(f"{source.path} has no {FILE}", remedy=_FETCH)


def _correct_tekken(library: Library, path: Path) -> None:
    """Give Mistral's vocabularies their own pattern: files of 2025 on the Hub carry another one, and ids differ."""
    if library.token_to_id("[INST]") is None or library.token_to_id("<SPECIAL_20>") is None:
        return
    steps = _parts(library.pre_tokenizer, "pretokenizers")
    (pattern,) = PreTokenizers({}).find("tekken", where=str(path)).patterns
    if not steps or steps[0].get("type") != "Split" or steps[0].get("pattern") == {"Regex": pattern}:
        return
    warnings.warn(
        f"{path}: the pattern of this Mistral vocabulary is wrong and was replaced", UserWarning, stacklevel=3
    )
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _parts(component: Any, children: str) -> list[dict[str, Any]]:
    """The steps of a component of the library, as its file describes them."""
    if component is None:
        return []
    state: dict[str, Any] = json.loads(component.__getstate__())
    return [part for child in state[children] for part in _flat(child, children)] if children in state else [state]


def _flat(state: dict[str, Any], children: str) -> Iterable[dict[str, Any]]:
    return [part for child in state[children] for part in _flat(child, children)] if children in state else [state]


def _spelling(entry: Any) -> str | None:
    """A token in a configuration: its spelling, or an object that has it as `content`."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) and text else None


def _add_declared(library: Library, config: Mapping[str, Any], path: Path) -> None:
    """Tokens that only `added_tokens_decoder` of tokenizer_config.json names."""
    where = f"{path.parent / _CONFIG}: added_tokens_decoder"
    declared = config.get("added_tokens_decoder") or {}
    if not isinstance(declared, dict) or not all(id.isdecimal() and isinstance(declared[id], dict) for id in declared):
        raise TokenizerError(f"{where} is no object of tokens by id", remedy=_FETCH)
    for id, entry in sorted(((int(id), entry) for id, entry in declared.items()), key=itemgetter(0)):
        spelling = _spelling(entry)
        if spelling is None or library.token_to_id(spelling) == id:
            continue
        flags = {flag: bool(entry.get(flag)) for flag in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        library.add_tokens([AddedToken(spelling, **flags)])
        if (made := library.token_to_id(spelling)) != id:
            raise TokenizerError(f"{where} gives {spelling!r} the id {id}, but {FILE} makes it {made}", remedy=_FETCH)


def _role(library: Library, config: Mapping[str, Any], role: str, source: ModelSource) -> int | None:
    """The id that a token's name in tokenizer_config.json has, or that config.json gives."""
    spelling = _spelling(config.get(f"{role}_token"))
    if spelling is None:
        given = source.config.get(f"{role}_token_id")
        id: Any = given[0] if isinstance(given, list) and given else given
        return id if type(id) is int and id >= 0 and library.id_to_token(id) is not None else None
    found: int | None = library.token_to_id(spelling)
    if found is None and role in ("bos", "eos"):
        raise TokenizerError(
            f"{source.path}: {_CONFIG}: {role}_token is {spelling!r}, which {FILE} lacks", remedy=_FETCH
        )
    return found


def _mark_controls(library: Library, config: Mapping[str, Any], roles: Mapping[str, int | None]) -> dict[str, Special]:
    """Control tokens: those that the file calls special or another file names, and those written like `<|name|>`."""
    additional = config.get("additional_special_tokens") or []
    spellings = [_spelling(entry) for entry in (additional if isinstance(additional, list) else [additional])]
    # Not the padding: some files name an ordinary word.
    spellings += [library.id_to_token(id) for role, id in roles.items() if id is not None and role != "pad"]
    named = {spelling for spelling in spellings if spelling is not None}
    for spelling in named:
        if (id := library.token_to_id(spelling)) is not None and id not in library.get_added_tokens_decoder():
            library.add_special_tokens([AddedToken(spelling, normalized=False, special=True)])
    controls = {}
    for id, token in library.get_added_tokens_decoder().items():
        text = token.content
        if not (token.special or text in named or looks_like_control(text)):
            continue
        if not token.special:  # the library changes the flag of a token that it has
            flags = {flag: getattr(token, flag) for flag in ("lstrip", "rstrip", "single_word", "normalized")}
            library.add_special_tokens([AddedToken(text, special=True, **flags)])
        controls[text] = Special(id, token.lstrip, token.rstrip, token.single_word)
    return controls


def _encoder(library: Library, controls: Mapping[str, Special], unk: int | None) -> Callable[[str, bool], list[int]]:
    """Encodes text without control tokens. Metaspace may put a space before text at the very start only."""
    forbidden = frozenset(entry.id for text, entry in controls.items() if len(text) > 1) - {unk}
    spelled = Matcher({text: Special(entry.id) for text, entry in controls.items() if entry.id in forbidden})
    marker = ""
    if any(part.get("prepend_scheme") == "first" for part in _parts(library.pre_tokenizer, "pretokenizers")):
        # A token of our own before the text tells the library that it is not the start; nobody can guess its spelling.
        marker = f"\U0010fffe{secrets.token_hex(8)}\U0010fffe"
        library.add_tokens([AddedToken(marker, normalized=False)])

    def encode(text: str, at_start: bool) -> list[int]:
        ids: list[int]
        if at_start or not marker:
            ids = library.encode(text, add_special_tokens=False).ids
        else:
            ids = library.encode(marker + text, add_special_tokens=False).ids[1:]
        if forbidden.isdisjoint(ids):
            return ids
        # The model itself makes a control token of its spelling: cut that in two.
        cuts = [0, *(begin + 1 for begin, _, _ in spelled.matches(text, [(0, len(text))])), len(text)]
        parts = [library.encode(text[begin:end], add_special_tokens=False).ids for begin, end in pairwise(cuts)]
        return [id for part in parts for id in part]

    return encode


def _added_around(
    library: Library, config: Mapping[str, Any], bos: int | None, eos: int | None, path: Path
) -> tuple[bool, bool]:
    """Whether BOS and EOS go around text: as tokenizer_config.json says, else as the post-processor does."""
    plain = library.encode("a", add_special_tokens=False).ids
    around = library.encode("a", add_special_tokens=True).ids
    begin = next((at for at in range(len(around)) if around[at : at + len(plain)] == plain), len(around))
    parts = {"bos": (bos, around[:begin]), "eos": (eos, around[begin + len(plain) :])}
    added = {}
    for role, (id, found) in parts.items():
        said = config.get(f"add_{role}_token")
        if said is None and found not in ([], [id]):
            raise TokenizerError(
                f"{path}: the post-processor puts {library.decode(found, skip_special_tokens=False)!r} beside text, "
                f"and not {role}_token",
                remedy=f"say {role}_token or add_{role}_token in {_CONFIG}",
            )
        if said is not None and (not isinstance(said, bool) or (said and id is None)):
            raise TokenizerError(
                f"{path.parent / _CONFIG}: add_{role}_token is {said!r}, and {role}_token is not known", remedy=_FETCH
            )
        added[role] = bool(found) if said is None else said
    return added["bos"], added["eos"]


def model_ends(source: ModelSource, eos: int | None) -> set[int]:
    """The end tokens that generation_config.json and config.json name, and the tokenizer's own."""
    ends = set() if eos is None else {eos}
    generation = source.json("generation_config.json") or {}
    for name, config in (("generation_config.json", generation), ("config.json", source.config)):
        value = config.get("eos_token_id")
        for id in value if isinstance(value, list) else [value]:
            if id is None:
                continue
            if isinstance(id, bool) or not isinstance(id, int) or id < 0:
                raise TokenizerError(f"{source.path}: {name}: eos_token_id is {value!r}, no token ids", remedy=_FETCH)
            ends.add(id)
    return ends


def _decoder(
    library: Library, tokens: list[str], controls: Container[int], path: Path
) -> tuple[Callable[[int], bytes], bool]:
    """The bytes of each id, and whether a space at the very start is left out, by the decoder in the file."""
    added = frozenset(library.get_added_tokens_decoder())
    replaced: dict[str, str] = {}
    byte_fallback = byte_level = strip = False
    for part in _parts(library.decoder, "decoders"):
        match part:
            case {"type": "ByteLevel"}:
                byte_level = True
            case {"type": "ByteFallback"}:
                byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                replaced[old] = new
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
                strip = True
            case {"type": "Metaspace", "replacement": old, "prepend_scheme": scheme}:
                replaced[old] = " "
                strip = scheme != "never"
            case _:
                raise TokenizerError(f"{path}: the decoder {part} is unknown", remedy="update zoo, or use a GGUF file")
    if not (byte_level or replaced or byte_fallback):
        raise TokenizerError(f"{path}: has no decoder: ids cannot be turned into text", remedy=_FETCH)
    alphabet = byte_alphabet()

    def piece(id: int) -> bytes:
        token = tokens[id]
        if id in controls:
            return raw_piece(token)
        if byte_level:
            return raw_piece(token) if id in added else byte_level_piece(token, alphabet)
        if byte_fallback and (byte := byte_token(token)) is not None:
            return byte
        for old, new in replaced.items():
            token = token.replace(old, new)
        return raw_piece(token)

    return piece, strip
