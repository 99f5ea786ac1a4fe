"""Token ids of GGUF vocabularies against llama.cpp's own."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizer_files import (
    CONTROL,
    SAMPLES,
    byte_level_file,
    byte_level_vocabulary,
    spaced_file,
    spaced_tokens,
    spaced_vocabulary,
    write_vocabulary,
)

from oracle.llamacpp import LlamaCpp
from zoo.source import ModelSource
from zoo.tokenizer import Tokenizer, load_tokenizer
from zoo.tokenizer.pretokenizers import PreTokenizers

SPELLED = "<|im_start|>user\nhi <s>x</s> <|u|>  <user> y<user>z <start_of_turn>\n<bos><eos><unk><0x41><|endoftext|>"
TEXTS = {**SAMPLES, "specials": SPELLED, "empty": "", "page": "\n\n".join([*SAMPLES.values(), SPELLED])}
# llama.cpp writes case-aware patterns without \p{M}: its ids for scripts with combining marks are not the makers'.
CASE_AWARE = {"tekken", "gpt-4o", "llama4", "kanana2", "minimax-m2"}


def load(path: Path) -> Tokenizer:
    with ModelSource.open(path) as source:
        return load_tokenizer(source)


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Tokenizer, LlamaCpp]]:
    path: Path = request.getfixturevalue(request.param)
    with LlamaCpp(path, vocab_only=True) as theirs:
        yield load(path), theirs


@pytest.mark.parametrize("pair", ["smollm2", "gemma3"], indirect=True)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("parse_special", [False, True])
def test_ids_of_real_models(pair: tuple[Tokenizer, LlamaCpp], text: str, parse_special: bool) -> None:
    ours, theirs = pair
    # Gemma's </s> closes an HTML tag and is user-defined; llama.cpp takes it for an end of text.
    text = text.replace("</s>", "") if ours.kind == "spm" else text
    ids = ours.encode(text, parse_special=parse_special)
    assert ids == theirs.tokenize(text, add_special=True, parse_special=parse_special)
    assert ours.decode(ids, skip_special=False).encode().removeprefix(b"<bos>") == text.encode()


@pytest.mark.parametrize("pair", ["smollm2", "gemma3"], indirect=True)
def test_end_tokens_of_real_models(pair: tuple[Tokenizer, LlamaCpp]) -> None:
    ours, theirs = pair
    html = {id for id in theirs.ends() if ours.token(id) == "</s>"} if ours.kind == "spm" else set()
    assert ours.eog_ids == theirs.ends() - html
    assert ours.add_bos == theirs.add_bos
    assert ours.vocab_size == theirs.vocab_size


@pytest.mark.parametrize("pre", [name for name in PreTokenizers({}).names() if name != "default"])
def test_every_pre_tokeniser(pre: str, tmp_path: Path) -> None:
    ours = load(byte_level_file(tmp_path / "ours.gguf", pre=pre))
    # The same regular expressions under a name that llama.cpp does not have.
    known = "deepseek-v3" if pre == "deepseek-v3.1" else pre
    with LlamaCpp(byte_level_file(tmp_path / "theirs.gguf", pre=known), vocab_only=True) as theirs:
        assert ours.add_bos == theirs.add_bos
        for name, text in TEXTS.items():
            if pre in CASE_AWARE and name in ("scripts", "page"):
                continue
            for parse_special in (False, True):
                ids = ours.encode(text, parse_special=parse_special)
                assert ids == theirs.tokenize(text, add_special=True, parse_special=parse_special), name
                assert ours.decode(ids, skip_special=False).removeprefix("<s>") == text.removeprefix("<s>"), name


def test_default_pre_tokeniser_of_an_unknown_vocabulary(tmp_path: Path) -> None:
    path = byte_level_file(tmp_path / "default.gguf", pre="default")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = load(path)
    with LlamaCpp(path, vocab_only=True) as theirs:
        for name, text in TEXTS.items():
            assert ours.encode(text) == theirs.tokenize(text, add_special=True), name


def test_a_wrong_pre_tokeniser_changes_ids(tmp_path: Path) -> None:
    """The mutation that the tests above must notice: every two tables of patterns differ on the samples."""
    table = PreTokenizers({})
    names = [
        "llama-bpe",
        "qwen2",
        "qwen35",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
        "smollm",
        "gpt-2",
        "tekken",
    ]
    names += ["gpt-4o", "default"]
    assert len({table.find(name, where="").patterns for name in table.names()}) == len(names)
    ids = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            ours = load(byte_level_file(tmp_path / f"{name}.gguf", pre=name, add_bos_token=False))
            ids[name] = {sample: tuple(ours.encode(text)) for sample, text in SAMPLES.items()}
    assert len({tuple(samples.values()) for samples in ids.values()}) == len(names)
    for mistaken, samples in {"gpt-2": ("digits", "cjk"), "qwen2": ("digits", "cjk"), "llama-bpe": ("cjk",)}.items():
        for sample in samples:
            assert ids[mistaken][sample] != ids["deepseek-v3"][sample], (mistaken, sample)


@pytest.mark.parametrize("crossing", [False, True])
@pytest.mark.parametrize("add_space_prefix", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_sentencepiece_by_score(crossing: bool, add_space_prefix: bool, seed: int, tmp_path: Path) -> None:
    """Scores at random, with many equal ones in every second file: the order of merges is all that matters."""
    tokens, types = spaced_tokens(crossing=crossing)
    rng = random.Random(seed)
    scores = [float(rng.randrange(-5, 5)) if seed % 2 else rng.uniform(-9, 0) for _ in tokens]
    keys = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_space_prefix": add_space_prefix}
    path = write_vocabulary(tmp_path / "spm.gguf", "llama", tokens, types=types, scores=scores, **keys)
    ours = load(path)
    with LlamaCpp(path, vocab_only=True) as theirs:
        for name, text in TEXTS.items():
            for parse_special in (False, True):
                ids = ours.encode(text, parse_special=parse_special)
                assert ids == theirs.tokenize(text, add_special=True, parse_special=parse_special), name


def test_sentencepiece_defaults(tmp_path: Path) -> None:
    path = spaced_file(tmp_path / "spm.gguf")
    ours = load(path)
    assert (ours.kind, ours.add_bos, ours.add_eos) == ("spm", True, False)
    with LlamaCpp(path, vocab_only=True) as theirs:
        for name, text in TEXTS.items():
            assert ours.encode(text) == theirs.tokenize(text, add_special=True), name


def test_phi3_tokens_swallow_white_space(tmp_path: Path) -> None:
    """llama.cpp goes by the name of the model, zoo by the architecture."""
    tokens, types = spaced_tokens(crossing=False)
    path = write_vocabulary(
        tmp_path / "phi3.gguf",
        "llama",
        [*tokens, "<|endoftext|>"],
        types=[*types, CONTROL],
        scores=[-float(id) for id in range(len(tokens) + 1)],
        architecture="phi3",
        name="Phi-3-mini",
    )
    ours = load(path)
    with LlamaCpp(path, vocab_only=True) as theirs:
        for text in ("<|u|>\n hi<|u|>  \n<s> x</s> y <user> z", "<|u|> ", " <|u|>", "<|endoftext|> a <unk> b"):
            ids = ours.encode(text, parse_special=True)
            assert ids == theirs.tokenize(text, add_special=True, parse_special=True)
    swallowed = ours.encode_segments([("<|u|>\n", True), (" hi", False)])
    assert swallowed == ours.encode_segments([("<|u|>hi", True)])


@pytest.mark.parametrize("crossing", [False, True])
def test_gemma4_merges(crossing: bool, tmp_path: Path) -> None:
    tokens, types = spaced_tokens(crossing=crossing)
    _, merges = spaced_vocabulary(crossing=crossing)
    keys = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_bos_token": False}  # wrong in many files
    lines = [merge for merge in merges if "\n" not in merge]  # as converters write them
    path = write_vocabulary(tmp_path / "gemma4.gguf", "gemma4", tokens, types=types, merges=lines, **keys)
    ours = load(path)
    with LlamaCpp(path, vocab_only=True) as theirs:
        for name, text in TEXTS.items():
            for parse_special in (False, True):
                ids = ours.encode(text, parse_special=parse_special)
                assert ids == theirs.tokenize(text, add_special=True, parse_special=parse_special), name
            assert ours.decode(ours.encode(text)) == text, name


def test_llama3_keeps_whole_words(tmp_path: Path) -> None:
    """ignore_merges: a piece that is a token is taken whole, although no merges lead to it."""
    tokens, merges = byte_level_vocabulary()
    unreachable = "Ġunreachable"
    found = {}
    for pre in ("llama-bpe", "smaug-bpe"):
        path = write_vocabulary(tmp_path / f"{pre}.gguf", "gpt2", [*tokens, unreachable], merges=merges, pre=pre)
        found[pre] = load(path).encode("an unreachable one", add_special=False)
        with LlamaCpp(path, vocab_only=True) as theirs:
            assert found[pre] == theirs.tokenize("an unreachable one")
    assert len(tokens) in found["llama-bpe"]
    assert len(tokens) not in found["smaug-bpe"]
