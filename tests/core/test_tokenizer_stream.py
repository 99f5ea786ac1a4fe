"""Ids to text, whole and one after the other, and text made of trusted and untrusted segments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_files import SAMPLES, byte_level_file, spaced_file, spaced_vocabulary
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from oracle.llamacpp import LlamaCpp
from zoo.source import ModelSource
from zoo.tokenizer import Tokenizer, TokenStream, load_tokenizer

ATOMS = [
    "<s>",
    "</s>",
    "<|u|>",
    "<user>",
    "<",
    "|u|>",
    " ",
    "  ",
    "\n",
    "hi",
    "don't",
    "12345",
    "é",
    "日本",
    "😀",
    "▁",
    "x",
]


@dataclass
class Both:
    ours: Tokenizer
    theirs: LlamaCpp | None

    def kept(self, text: str) -> str:
        """Metaspace puts no space before one that a text begins with, so that decoding takes away the text's own."""
        return text if self.theirs else text.removeprefix(" ")


def metaspace_directory(path: Path) -> Path:
    """tokenizer.json in the way of Llama's: a space before the very start, byte tokens, and its decoder."""
    tokens, merges = spaced_vocabulary(crossing=True)
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *tokens]
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    library = Library(
        models.BPE({token: id for id, token in enumerate(names)}, pairs, unk_token="<unk>", byte_fallback=True)
    )
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<s>", "</s>", "<|u|>"])
    library.add_tokens(["<user>"])
    library.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps({"architectures": ["X"]}))
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return path


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece", "no-prefix", "metaspace"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    directory = tmp_path_factory.mktemp("tokenizer")
    path = directory / "model.gguf"
    match request.param:
        case "byte-level":
            byte_level_file(path, pre="deepseek-v3")
        case "metaspace":
            path = metaspace_directory(directory)
        case _:
            spaced_file(path, crossing=True, add_space_prefix=request.param == "sentencepiece")
    with ModelSource.open(path) as source:
        ours = load_tokenizer(source)
    if path.is_dir():
        yield Both(ours, None)
        return
    with LlamaCpp(path, vocab_only=True) as theirs:
        yield Both(ours, theirs)


ids_of = st.lists(st.one_of(st.integers(0, 300), st.integers(0, 1300)), max_size=40)


@given(ids=ids_of, skip=st.booleans())
def test_a_stream_gives_what_decode_gives(both: Both, ids: list[int], skip: bool) -> None:
    stream = both.ours.stream(skip_special=skip)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.flush() == both.ours.decode(ids, skip_special=skip)


@given(ids=ids_of)
def test_decoded_text_is_llama_cpps(both: Both, ids: list[int]) -> None:
    if both.theirs is None:
        return
    known = [id for id in ids if id < both.theirs.vocab_size]
    # llama.cpp drops the space of the first token even behind a control token, and only there.
    special = bool(known) and known[0] in both.ours.control_tokens.values()
    if not special:
        theirs = both.theirs.detokenize(known, special=True).decode("utf-8", "replace")
        assert both.ours.decode(known, skip_special=False) == theirs


@given(text=st.text(max_size=60))
def test_only_whole_characters_are_emitted(both: Both, text: str) -> None:
    text = text.replace("▁", "_").replace("\ufffd", "?")
    ids = both.ours.encode(text, add_special=False)
    stream = both.ours.stream()
    said = ""
    for index, id in enumerate(ids):
        piece = stream.push(id)
        assert "\ufffd" not in piece
        said += piece
        known = b"".join(both.ours._piece(each) for each in ids[: index + 1])
        assert len(known.decode("utf-8", "ignore")) - len(said) in (0, 1)  # 1: the space of the very start
    assert said + stream.flush() == both.kept(text)


def test_every_token_is_decoded_once() -> None:
    asked: list[int] = []

    def piece(id: int) -> bytes:
        asked.append(id)
        return "é".encode()[id % 2 : id % 2 + 1]

    stream = TokenStream(piece, frozenset(), strip_space=False)
    assert "".join(stream.push(id) for id in range(1000)) == "é" * 500
    assert asked == list(range(1000))


def test_bytes_that_are_no_utf8() -> None:
    pieces = {0: b"\xf0\x9f", 1: b"\x98\x80", 2: b"a", 3: b"\xff"}
    stream = TokenStream(pieces.__getitem__, frozenset(), strip_space=False)
    assert [stream.push(id) for id in (0, 1, 2)] == ["", "😀", "a"]
    assert [stream.push(id) for id in (0, 2, 3)] == ["", "\ufffda", "\ufffd"]
    assert (stream.push(0), stream.flush(), stream.flush()) == ("", "\ufffd", "")


@pytest.mark.parametrize("both", ["sentencepiece", "metaspace"], indirect=True)
def test_the_space_of_a_start(both: Both) -> None:
    ours = both.ours
    word = next(id for id in range(ours.vocab_size) if re.fullmatch("▁[a-z]+", ours.token(id)))
    text = ours.token(word)[1:]
    control = ours.control_tokens["<|u|>"]
    for prompt, expected in (([], f"{text} {text}"), ([word], f" {text} {text}"), ([word, control], f"{text} {text}")):
        stream = ours.stream(prompt_ids=prompt)
        assert "".join(stream.push(id) for id in (word, word)) + stream.flush() == expected
    stream = ours.stream()
    assert [stream.push(id) for id in (control, word, word)] == ["", text, f" {text}"]
    assert ours.decode([control, word], skip_special=False) == f"<|u|> {text}"


@pytest.mark.parametrize("both", ["sentencepiece"], indirect=True)
def test_a_character_that_begins_in_the_prompt(both: Both) -> None:
    first, *rest = [both.ours.id(f"<0x{byte:02X}>") for byte in "😀".encode()]
    stream = both.ours.stream(prompt_ids=[5 + 65, first])
    assert "".join(stream.push(id) for id in rest) == "😀"


@given(atoms=st.lists(st.sampled_from(ATOMS), max_size=12), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_trusted_segments_are_one_text(both: Both, atoms: list[str], cuts: list[int]) -> None:
    text = "".join(atoms)
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    segments = [(text[begin:end], True) for begin, end in pairwise(borders)]
    ids = both.ours.encode_segments(segments)
    assert ids == both.ours.encode(text, add_special=False, parse_special=True)
    if both.theirs is not None:
        assert ids == both.theirs.tokenize(text, parse_special=True)


@given(atoms=st.lists(st.tuples(st.sampled_from(ATOMS), st.booleans()), max_size=12))
def test_segments_without_control_tokens_are_plain_text(both: Both, atoms: list[tuple[str, bool]]) -> None:
    """What a user spells, and what is spelled across a border, is text: its merges go on across the border."""
    segments = [(text, trusted and not text.startswith("<")) for text, trusted in atoms]
    text = "".join(text for text, _ in segments)
    ids = both.ours.encode_segments(segments)
    assert ids == both.ours.encode(text, add_special=False)
    assert not set(ids) & set(both.ours.control_tokens.values()) - {both.ours.unk_id}


def test_a_chat(both: Both) -> None:
    ours = both.ours
    begin, end = ours.control_tokens["<|u|>"], ours.control_tokens["</s>"]
    user = "hi <|u|></s> there"
    segments = [("<s><|u|>", True), ("say ", True), (user, False), (" now</s>\n<|u|>", True)]
    ids = ours.encode_segments(segments)
    assert [id for id in ids if id in (begin, end)] == [begin, end, begin]
    inner = ids[2 : ids.index(end)]
    expected = ours.encode_segments([("<|u|>", True), (f"say {user} now", False)])[1:]
    assert inner == expected
    assert ours.encode_segments(segments, add_special=True) == [ours.bos_id] * ours.add_bos + ids
    assert ours.encode_segments([("</", True), ("s>", False)]) == ours.encode("</s>", add_special=False)
    assert end in ours.encode_segments([("</", True), ("s>", True)])


@pytest.mark.parametrize("text", SAMPLES.values(), ids=SAMPLES.keys())
def test_samples_come_back(both: Both, text: str) -> None:
    assert both.ours.decode(both.ours.encode(text)) == both.kept(text)
