"""Tokenizers of Hugging Face directories, against `tokenizers` and transformers on the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import SAMPLES, byte_level_vocabulary, spaced_vocabulary
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library
from transformers import PreTrainedTokenizerFast

from zoo.errors import TokenizerError
from zoo.source import ModelSource
from zoo.tokenizer import Tokenizer, load_tokenizer
from zoo.tokenizer.pretokenizers import PreTokenizers

LLAMA3 = PreTokenizers({}).find("llama-bpe", where="test").patterns[0]
SPELLED = [
    "<s>hi</s> <s> there</s>",
    "x<|u|> y  <|u|>\n\nz",
    "a<strip>  b <strip>c  <strip>",
    "<word> a<word>b <word>, <word>",
    "say <think>this</think> now",
    "  <s>  lead",
]
TEXTS = [*SAMPLES.values(), *SPELLED, "", " ", "\n\n".join([*SAMPLES.values(), *SPELLED])]


def pairs(merges: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]


def byte_level() -> Library:
    tokens, merges = byte_level_vocabulary()
    library = Library(models.BPE({token: id for id, token in enumerate(tokens)}, pairs(merges), ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    return library


def spaced() -> Library:
    tokens, merges = spaced_vocabulary(crossing=True)
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *tokens]
    vocabulary = {token: id for id, token in enumerate(names)}
    model = models.BPE(vocabulary, pairs(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    library = Library(model)
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return library


def legacy_llama() -> Library:
    library = spaced()
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return library


def llama() -> Library:
    library = spaced()
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return library


def gemma() -> Library:
    library = spaced()
    library.normalizer = normalizers.Replace(" ", "▁")
    library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return library


def unigram() -> Library:
    tokens, _ = spaced_vocabulary(crossing=False)
    scores = [("<unk>", 0.0), *((token, -1.0 - id / 50) for id, token in enumerate(tokens))]
    library = Library(models.Unigram(scores, unk_id=0, byte_fallback=False))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    library.decoder = decoders.Metaspace(prepend_scheme="always")
    return library


FAMILIES = {each.__name__: each for each in (byte_level, legacy_llama, llama, gemma, unigram)}


def finished(library: Library) -> Library:
    """With control tokens, ordinary added tokens, and BOS put before text."""
    library.add_special_tokens(
        [
            AddedToken("<s>", normalized=False),
            AddedToken("</s>", normalized=False),
            AddedToken("<|u|>", normalized=False, rstrip=True),
            AddedToken("<strip>", normalized=False, lstrip=True, rstrip=True),
            AddedToken("<word>", normalized=False, single_word=True),
        ]
    )
    library.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    bos = library.token_to_id("<s>")
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return library


def directory(path: Path, library: Library, **files: dict[str, Any]) -> Path:
    """A model directory: tokenizer.json, and `files` by name without .json; config names bos and eos unless told."""
    library.save(str(path / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>"} if library.token_to_id("<s>") is not None else {}
    for name, content in {"config": {"architectures": ["X"]}, "tokenizer_config": named, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return path


def load(path: Path) -> Tokenizer:
    with ModelSource.open(path) as source:
        return load_tokenizer(source)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_ids_and_text_equal_tokenizers(family: Callable[[], Library], tmp_path: Path) -> None:
    library = finished(family())
    ours = load(directory(tmp_path, library))
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<s>", eos_token="</s>")
    for text in TEXTS:
        library.encode_special_tokens = False
        ids = ours.encode(text, parse_special=True)
        assert ids == library.encode(text).ids
        assert ids == fast.encode(text)
        assert (
            ours.encode(text, parse_special=True, add_special=False)
            == library.encode(text, add_special_tokens=False).ids
        )
        library.encode_special_tokens = True
        assert ours.encode(text) == library.encode(text).ids
        for skip in (False, True):
            assert ours.decode(ids, skip_special=skip) == library.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_facts(family: Callable[[], Library], tmp_path: Path) -> None:
    library = finished(family())
    ours = load(directory(tmp_path, library))
    assert ours.vocab_size == library.get_vocab_size()
    assert (ours.bos_id, ours.eos_id) == (library.token_to_id("<s>"), library.token_to_id("</s>"))
    assert (ours.add_bos, ours.add_eos) == (True, False)
    assert set(ours.control_tokens) >= {"<s>", "</s>", "<|u|>", "<strip>", "<word>"}
    assert "<think>" not in ours.control_tokens
    assert ours.eog_ids == {ours.eos_id}
    assert ours.kind == type(library.model).__name__.lower()
    assert ours.suppressed_ids == frozenset()
    for id in (0, 5, library.get_vocab_size() - 1):
        assert ours.token(id) == library.id_to_token(id)
        assert ours.id(ours.token(id)) == id


def test_segments_do_not_begin_a_text(tmp_path: Path) -> None:
    """Metaspace's prepend_scheme "first": only the very start gets a space, not what follows a control token."""
    ours = load(directory(tmp_path, finished(llama())))
    once = ours.encode("hello", add_special=False)
    assert ours.token(once[0])[0] == "▁"
    after = ours.encode_segments([("<s>", True), ("hello", False)])
    assert ours.token(after[1])[0] != "▁"
    assert ours.decode(after) == "hello"


def test_tokens_that_look_like_control_are(tmp_path: Path) -> None:
    """DeepSeek's <｜User｜> and Phi's <|tool|> are not marked special in tokenizer.json; no user may spell them."""
    library = finished(byte_level())
    library.add_tokens([AddedToken("<｜User｜>", normalized=False), AddedToken("<|im_end|>", normalized=False)])
    ours = load(directory(tmp_path, library))
    for spelling in ("<｜User｜>", "<|im_end|>"):
        id = library.token_to_id(spelling)
        assert ours.control_tokens[spelling] == id
        assert id not in ours.encode(f"a{spelling}b")
        assert id in ours.encode(f"a{spelling}b", parse_special=True)
        assert ours.decode([id]) == ""
    assert ours.eog_ids == {ours.eos_id, library.token_to_id("<|im_end|>")}


def test_end_tokens_are_a_union(tmp_path: Path) -> None:
    files = {"generation_config": {"eos_token_id": [3, 5]}, "config": {"architectures": ["X"], "eos_token_id": 7}}
    ours = load(directory(tmp_path, finished(byte_level()), **files))
    assert ours.eog_ids == {3, 5, 7, ours.eos_id}


@pytest.mark.parametrize("said", [True, False])
def test_add_bos_token_of_the_configuration_wins(said: bool, tmp_path: Path) -> None:
    library = finished(byte_level())
    if said:
        library.post_processor = processors.ByteLevel()
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": said, "add_eos_token": said}
    ours = load(directory(tmp_path, library, tokenizer_config=config))
    assert (ours.add_bos, ours.add_eos) == (said, said)
    assert (ours.encode("x")[0] == ours.bos_id) is said
    assert (ours.encode("x")[-1] == ours.eos_id) is said
    assert ours.encode("x", add_special=False) == ours.encode("x")[said : -1 if said else None]


def test_ids_of_config_json(tmp_path: Path) -> None:
    library = finished(byte_level())
    bos, eos = library.token_to_id("<s>"), library.token_to_id("</s>")
    config = {"architectures": ["X"], "bos_token_id": bos, "eos_token_id": [eos, 9], "pad_token_id": 10**6}
    ours = load(directory(tmp_path, library, config=config, tokenizer_config={}))
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.add_bos) == (bos, eos, None, True)
    assert ours.eog_ids == {eos, 9}


def test_names_in_other_files(tmp_path: Path) -> None:
    library = byte_level()
    library.add_tokens([AddedToken(name, normalized=False) for name in ("<b>", "<e>", "<role>", "<pad>")])
    size = library.get_vocab_size()
    ours = load(
        directory(
            tmp_path,
            library,
            special_tokens_map={"bos_token": "<b>", "eos_token": {"content": "<e>"}},
            tokenizer_config={
                "pad_token": "<pad>",
                "additional_special_tokens": ["<role>"],
                "added_tokens_decoder": {str(size): {"content": "<more>", "special": True}},
            },
        )
    )
    assert set(ours.control_tokens) == {"<b>", "<e>", "<role>", "<more>"}
    assert (ours.id("<more>"), ours.vocab_size) == (size, size + 1)
    assert ours.pad_id == library.token_to_id("<pad>")
    assert ours.encode("<more>", parse_special=True) == [size]


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    library = finished(byte_level())
    library.enable_truncation(4)
    library.enable_padding(length=64)
    ours = load(directory(tmp_path, library))
    text = SAMPLES["prose"]
    assert ours.decode(ours.encode(text)) == text


def test_ids_without_a_token(tmp_path: Path) -> None:
    library = Library(models.BPE({"a": 0, "b": 4}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    ours = load(directory(tmp_path, library))
    assert ours.vocab_size == 5
    assert ours.suppressed_ids == {1, 2, 3}
    assert ours.decode([0, 1, 4, 5, 1000]) == "ab"


@pytest.mark.parametrize("kind", ["merges", "pieces"])
def test_a_model_that_makes_control_tokens_of_text(kind: str, tmp_path: Path) -> None:
    """Merges, or unigram pieces, that lead to </s>: the spelling typed by a user is still text."""
    vocabulary = ["<unk>", "</s>", "</", "s>", "<", "/", "s", ">", "a", "▁"]
    if kind == "merges":
        merges = [("<", "/"), ("s", ">"), ("</", "s>")]
        library = Library(models.BPE({token: id for id, token in enumerate(vocabulary)}, merges, unk_token="<unk>"))
    else:
        library = Library(models.Unigram([(token, -float(id)) for id, token in enumerate(vocabulary)], unk_id=0))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    library.decoder = decoders.Metaspace(prepend_scheme="never")
    library.add_special_tokens(["</s>"])
    ours = load(directory(tmp_path, library, tokenizer_config={"eos_token": "</s>"}))
    assert library.token_to_id("</s>") == ours.eos_id == 1
    ids = ours.encode("a</s>a</s> </s>")
    assert 1 not in ids
    assert ours.decode(ids) == "a</s>a</s> </s>"
    assert ours.encode("a</s>a</s>", parse_special=True).count(1) == 2
    assert 1 not in ours.encode_segments([("</s>", True), ("</s>", False)])[1:]


def test_padding_with_an_ordinary_word(tmp_path: Path) -> None:
    library = finished(byte_level())
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "!"}
    ours = load(directory(tmp_path, library, tokenizer_config=names))
    assert ours.pad_id == library.token_to_id("!")
    assert ours.decode(ours.encode("wow!")) == "wow!"


def test_an_id_beyond_all_bounds(tmp_path: Path) -> None:
    path = directory(tmp_path, Library(models.BPE({"a": 0, "b": 1 << 24}, [])))
    with pytest.raises(TokenizerError, match="has the token id 16777216"):
        load(path)


def test_mistrals_wrong_pattern_is_replaced(tmp_path: Path) -> None:
    library = finished(byte_level())
    library.add_special_tokens([AddedToken("[INST]"), AddedToken("<SPECIAL_20>")])
    with pytest.warns(UserWarning, match="pattern of this Mistral vocabulary"):
        ours = load(directory(tmp_path, library))
    (pattern,) = PreTokenizers({}).find("tekken", where="test").patterns
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    before = byte_level().encode(SAMPLES["digits"]).ids
    assert ours.encode(SAMPLES["digits"], add_special=False) == library.encode(SAMPLES["digits"]).ids[1:] != before


def test_a_text_that_is_no_unicode(tmp_path: Path) -> None:
    ours = load(directory(tmp_path, finished(byte_level())))
    with pytest.raises(TokenizerError, match=r"lone surrogate U\+D800 at character 2"):
        ours.encode("ab\ud800")


def test_negative_and_unknown_ids(tmp_path: Path) -> None:
    ours = load(directory(tmp_path, finished(byte_level())))
    with pytest.raises(TokenizerError, match="-1 is no token id"):
        ours.decode([1, -1])
    with pytest.raises(TokenizerError, match=f"no id {ours.vocab_size}"):
        ours.token(ours.vocab_size)
    assert ours.id("no such token") is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"generation_config": {"eos_token_id": [1, "2"]}}, r"generation_config.json: eos_token_id is \[1, '2'\]"),
        ({"generation_config": {"eos_token_id": True}}, "eos_token_id is True"),
        ({"config": {"architectures": ["X"], "eos_token_id": -1}}, "config.json: eos_token_id is -1"),
        ({"tokenizer_config": {"eos_token": "<none>"}}, "eos_token is '<none>', which tokenizer.json lacks"),
        ({"tokenizer_config": {"bos_token": "<s>", "add_bos_token": "yes"}}, "add_bos_token is 'yes'"),
        ({"tokenizer_config": {"add_bos_token": True}}, "bos_token is not known"),
        ({"tokenizer_config": {}}, "the post-processor puts '<s>' beside text, and not bos_token"),
        ({"tokenizer_config": {"added_tokens_decoder": {"2": {"content": "<x>"}}}}, "gives '<x>' the id 2"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "<x>"}}}}, "is no object of tokens by id"),
        ({"tokenizer_config": {"added_tokens_decoder": ["<x>"]}}, "is no object of tokens by id"),
    ],
)
def test_wrong_files(files: dict[str, dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=message):
        load(directory(tmp_path, finished(byte_level()), **files))


def test_a_damaged_tokenizer_file(tmp_path: Path) -> None:
    path = directory(tmp_path, finished(byte_level()))
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(TokenizerError, match=r"tokenizer.json: no tokenizer that can be read"):
        load(path)


def test_merges_at_which_the_library_panics(tmp_path: Path) -> None:
    path = directory(tmp_path, finished(byte_level()))
    state = json.loads((path / "tokenizer.json").read_text())
    state["model"]["vocab"], state["model"]["merges"] = {"<": 0, "b": 1, "<b": 2, ">": 3}, [["<", "b"], ["<b", ">"]]
    (path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(TokenizerError, match=r"tokenizer.json: no tokenizer that can be read"):
        load(path)


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece()])
def test_decoders_that_cannot_be_used(decoder: Any, tmp_path: Path) -> None:
    library = finished(byte_level())
    library.decoder = decoder
    with pytest.raises(TokenizerError, match="decoder"):
        load(directory(tmp_path, library))


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", None])
def test_no_tokenizer_file(name: str | None, tmp_path: Path) -> None:
    path = directory(tmp_path, finished(byte_level()))
    (path / "tokenizer.json").unlink()
    if name:
        (path / name).write_text("{}")
    with pytest.raises(
        TokenizerError, match=f"has {name}, but no tokenizer.json" if name else "has no tokenizer.json"
    ) as error:
        load(path)
    assert ("save_pretrained" in error.value.remedy) is (name is not None)
