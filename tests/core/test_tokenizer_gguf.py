"""Vocabularies in GGUF files: roles of tokens, defaults, guesses, and files that are wrong."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import (
    BYTE,
    CONTROL,
    NORMAL,
    SAMPLES,
    UNKNOWN,
    UNUSED,
    USER,
    byte_level_file,
    byte_level_vocabulary,
    spaced_file,
    spaced_tokens,
    write_vocabulary,
)
from tokenizers import Regex, pre_tokenizers

from zoo.errors import TokenizerError
from zoo.source import ModelSource
from zoo.tokenizer import Tokenizer, load_tokenizer
from zoo.tokenizer.pretokenizers import PreTokenizers

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def load(
    path: Path, extra_pre: Mapping[str, Sequence[str]] | None = None, overrides: Mapping[str, object] | None = None
) -> Tokenizer:
    with ModelSource.open(path, overrides) as source:
        return load_tokenizer(source, extra_pre or {})


def tiny(path: Path, extra: Sequence[str | bytes] = (), types: Sequence[int] = (), **keys: Any) -> Path:
    """The 256 bytes, then `extra` tokens of `types`, without merges unless `keys` say so."""
    keys = {"pre": "gpt-2", "merges": [f"{BYTES[40]} {BYTES[41]}"], **keys}
    pair = BYTES[40] + BYTES[41]
    kinds = [NORMAL] * 257 + list(types)
    return write_vocabulary(path / "tiny.gguf", "gpt2", [*BYTES, pair, *extra], types=kinds, **keys)


def test_roles_of_tokens(tmp_path: Path) -> None:
    extra = ["<b>", "<e>", "<u>", "<d>", "[PAD261]", "[PAD262]"]
    keys = {"bos_token_id": 257, "eos_token_id": 258, "unknown_token_id": 259, "padding_token_id": 258}
    ours = load(
        tiny(tmp_path, extra, [CONTROL, CONTROL, UNKNOWN, USER, UNUSED, UNUSED], suppress_tokens=[3, 4], **keys)
    )
    assert (ours.bos_id, ours.eos_id, ours.unk_id, ours.pad_id) == (257, 258, 259, 258)
    assert ours.control_tokens == {"<b>": 257, "<e>": 258, "<u>": 259}
    assert ours.suppressed_ids == {3, 4, 261, 262}
    assert (ours.kind, ours.pre, ours.vocab_size) == ("bpe", "gpt-2", 263)
    assert (ours.add_bos, ours.add_eos) == (False, False)
    assert ours.token(260) == "<d>"
    assert ours.id("<d>") == 260
    everything = "".join(extra)
    assert {257, 258, 259, 260} & set(ours.encode(everything)) == {260}
    assert {257, 258, 259, 260} <= set(ours.encode(everything, parse_special=True))
    assert not {261, 262} & set(ours.encode(everything, parse_special=True))
    assert ours.decode([257, 260, 261, 259]) == "<d>"
    assert ours.decode([257, 260, 261, 259], skip_special=False) == "<b><d>[PAD261]<u>"
    assert ours.decode([257, 100_000, 260, 263]) == "<d>"


@pytest.mark.parametrize(
    ("spelling", "kind", "ends"),
    [
        ("<|im_end|>", CONTROL, True),
        ("<|im_end|>", NORMAL, True),
        ("<|eot_id|>", USER, True),
        ("<｜end▁of▁sentence｜>", CONTROL, True),
        ("</s>", CONTROL, True),
        ("</s>", USER, False),
        ("</s>", NORMAL, False),
        ("<|user|>", CONTROL, False),
    ],
)
def test_end_tokens_by_spelling(spelling: str, kind: int, ends: bool, tmp_path: Path) -> None:
    ours = load(tiny(tmp_path, [spelling], [kind]))
    assert ours.eog_ids == ({257} if ends else set())
    control = ends or kind == CONTROL
    assert (spelling in ours.control_tokens) is control
    assert (257 in ours.encode(spelling)) is (kind == USER and not control)


def test_user_defined_tokens_that_look_like_control_are_control(tmp_path: Path) -> None:
    ours = load(tiny(tmp_path, ["<|tool|>", "<tool>", "<|>"], [USER] * 3))
    assert ours.control_tokens == {"<|tool|>": 257}
    assert ours.encode("<tool><|><|tool|>")[:2] == [258, 259]
    assert 257 not in ours.encode("<|tool|>")


def test_end_tokens_by_key(tmp_path: Path) -> None:
    roles = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
    keys = {f"{role}_token_id": 257 + index for index, role in enumerate(roles)}
    ours = load(tiny(tmp_path, [f"<{role}>" for role in roles], [CONTROL] * len(roles), **keys))
    assert ours.eog_ids == set(range(257, 257 + len(roles)))


def test_a_message_end_that_ends_no_answer(tmp_path: Path) -> None:
    """gpt-oss: <|end|> closes a message of several, <|return|> the answer."""
    ours = load(tiny(tmp_path, ["<|end|>", "<|return|>", "<|call|>"], [CONTROL] * 3))
    assert ours.eog_ids == {258, 259}
    ours = load(tiny(tmp_path, ["<|end|>", "</s>", "<|tool_response>"], [CONTROL] * 3))
    assert ours.eog_ids == {257, 259}


def test_ids_that_files_leave_out(tmp_path: Path) -> None:
    none = load(tiny(tmp_path, ["<b>"], [CONTROL], padding_token_id=0xFFFFFFFF))
    assert (none.bos_id, none.eos_id, none.unk_id, none.pad_id) == (None, None, None, None)
    tokens, types = spaced_tokens(crossing=False)
    scores = [-float(id) for id in range(len(tokens))]
    spm = load(write_vocabulary(tmp_path / "spm.gguf", "llama", tokens, types=types, scores=scores))
    assert (spm.bos_id, spm.eos_id, spm.unk_id, spm.add_bos) == (1, 2, 0, True)


def test_a_file_without_token_types(tmp_path: Path) -> None:
    tokens, _ = spaced_tokens(crossing=False)
    scores = [-float(id) for id in range(len(tokens))]
    keys = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    ours = load(write_vocabulary(tmp_path / "spm.gguf", "llama", tokens, scores=scores, **keys))
    assert ours.control_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    text = SAMPLES["emoji"] + "<0x41>"
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("said", [True, False])
def test_add_bos_and_eos(said: bool, tmp_path: Path) -> None:
    ours = load(byte_level_file(tmp_path / "x.gguf", pre="llama-bpe", add_bos_token=said, add_eos_token=said))
    assert (ours.add_bos, ours.add_eos) == (said, said)
    assert (ours.encode("x")[0] == 0) is said
    assert (ours.encode("x")[-1] == 1) is said
    assert ours.encode("") == ([0, 1] if said else [])


def test_qwen_composes_text_first(tmp_path: Path) -> None:
    """Qwen's tokenizer.json normalises (NFC); llama.cpp does not."""
    text = unicodedata.normalize("NFD", "café Ångström ﬁn²")
    for pre, composed in (("qwen2", True), ("qwen35", True), ("llama-bpe", False)):
        ours = load(byte_level_file(tmp_path / f"{pre}.gguf", pre=pre))
        assert ours.decode(ours.encode(text)) == (unicodedata.normalize("NFC", text) if composed else text)


@pytest.mark.parametrize("pre", ["tekken", "gpt-4o"])
def test_case_aware_patterns_are_the_makers(pre: str, tmp_path: Path) -> None:
    """Where marks follow letters llama.cpp's patterns differ; the yardstick is the makers' own pattern."""
    (pattern,) = PreTokenizers({}).find(pre, where="test").patterns
    ours = load(byte_level_file(tmp_path / "x.gguf", pre=pre, add_bos_token=False))
    text = SAMPLES["scripts"]
    pieces = [
        text[begin:end] for _, (begin, end) in pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)
    ]
    whole = [id for piece in pieces for id in ours.encode(piece)]
    assert ours.encode(text) == whole
    assert any("हिन्दी" in piece for piece in pieces)


GUESSES = [
    (["<|begin_of_text|>", "<|end_of_text|>"], 128256, "llama-bpe"),
    (["[INST]", "[/INST]"], 131072, "tekken"),
    (["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"], 128815, "deepseek-v3"),
    (["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"], 100015, "deepseek-llm"),
    (["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"], 151665, "deepseek-r1-qwen"),
    (["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|EOT|>"], 32022, "deepseek-coder"),
    (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 151665, "qwen2"),
    (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 248077, "qwen35"),
    (["<|endoftext|>", "<|im_sep|>"], 100352, "dbrx"),
    (["<|endoftext|>"], 200029, "gpt-4o"),
    (["<|endoftext|>", "<repo_name>", "<file_sep>"], 49152, "smollm"),
    (["<|endoftext|>"], 50295, "gpt-2"),
    (["<|endoftext|>"], 70000, "default"),
]


@pytest.mark.parametrize(("tokens", "size", "pre"), GUESSES)
def test_guess_of_a_missing_pre_tokeniser(tokens: list[str], size: int, pre: str) -> None:
    assert PreTokenizers({}).guess(set(tokens), size) == pre


def test_a_real_vocabulary_is_guessed(smollm2: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"pre names no pre-tokeniser.*looks like 'smollm'.*--set tokenizer.ggml.pre=NAME"
    ):
        ours = load(smollm2, overrides={"tokenizer.ggml.pre": "default"})
    assert ours.pre == "smollm"


def test_a_missing_pre_tokeniser_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="costs quality"):
        assert load(byte_level_file(tmp_path / "x.gguf")).pre == "default"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = load(byte_level_file(tmp_path / "x.gguf"), overrides={"tokenizer.ggml.pre": "qwen2"})
    assert ours.pre == "qwen2"


def test_pre_tokenisers_of_a_plugin(tmp_path: Path) -> None:
    path = byte_level_file(tmp_path / "x.gguf", pre="mine")
    with pytest.raises(
        TokenizerError, match=r"x.gguf: tokenizer.ggml.pre names the unknown pre-tokeniser 'mine'"
    ) as error:
        load(path)
    assert "llama-bpe" in error.value.remedy
    assert "deepseek-v3.1" in error.value.remedy
    ours = load(path, {"mine": ["[0-9]"]})
    assert ours.encode("a1234b") == [id for piece in ("a", "1", "2", "3", "4", "b") for id in ours.encode(piece)]
    with pytest.raises(TokenizerError, match="pattern of the pre-tokeniser 'mine' is broken"):
        load(path, {"mine": ["(["]})
    with pytest.raises(TokenizerError, match="mine, "):
        load(byte_level_file(tmp_path / "y.gguf", pre="yours"), {"mine": ["[0-9]"]})


def test_merges_of_tokens_with_spaces(tmp_path: Path) -> None:
    """A space inside a token is written as U+0120 in a merge; byte-level text has no such token."""
    tokens, merges = byte_level_vocabulary()
    path = tmp_path / "x.gguf"
    load(write_vocabulary(path, "gpt2", [*tokens, "~ ", "~ ~"], merges=[*merges, "~ Ġ", "~Ġ ~"], pre="gpt-2"))
    with pytest.raises(TokenizerError, match=r"merges has \('~', 'Ġ'\) as entry 582, of which '~Ġ' is no token"):
        load(write_vocabulary(path, "gpt2", [*tokens, "~ ~"], merges=[*merges, "~ Ġ", "~Ġ ~"], pre="gpt-2"))


def test_merges_to_control_tokens_do_nothing(tmp_path: Path) -> None:
    """Whatever a file says, text does not become a control token."""
    ours = load(tiny(tmp_path, ["<!", "<!>"], [NORMAL, CONTROL], merges=["< !", "<! >"]))
    assert ours.encode("<!>") == [257, BYTES.index(">")]
    assert ours.encode("<!>", parse_special=True) == [258]


def test_sentencepiece_text_becomes_no_control_token(tmp_path: Path) -> None:
    """ "</" and "s>" are tokens whose concatenation is one too: a control token."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<", "/", "s", ">", "</", "s>", "▁"]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * 7
    ours = load(write_vocabulary(tmp_path / "x.gguf", "llama", tokens, types=types, scores=[0.0] * len(tokens)))
    assert [ours.token(id) for id in ours.encode("</s>", add_special=False)] == ["▁", "</", "s>"]
    assert ours.encode("</s>", add_special=False, parse_special=True) == [2]


def test_tokens_that_are_no_utf8(tmp_path: Path) -> None:
    ours = load(tiny(tmp_path, [b"\xff\xfe", b"ok\x80", "after"], [NORMAL] * 3))
    assert ours.vocab_size == 260
    assert ours.token(257) == "\udcff\udcfe"
    assert ours.decode([257]) == "\ufffd\ufffd"
    assert ours.decode([258, 259]) == "ok\ufffdafter"
    text = SAMPLES["emoji"]
    assert ours.decode(ours.encode(text)) == text
    tokens, types = spaced_tokens(crossing=False)
    scores = [0.0] * (len(tokens) + 1)
    spm = load(
        write_vocabulary(tmp_path / "s.gguf", "llama", [*tokens, b"\xe2\x96"], types=[*types, NORMAL], scores=scores)
    )
    assert spm.decode([len(tokens)]) == "\ufffd"
    assert spm.decode(spm.encode(text)) == text


def test_byte_level_tokens_that_a_file_calls_bytes(tmp_path: Path) -> None:
    types = [BYTE] * 256 + [NORMAL]
    path = write_vocabulary(tmp_path / "x.gguf", "gpt2", [*BYTES, "ab"], types=types, merges=["a b"], pre="gpt-2")
    ours = load(path)
    assert ours.decode(ours.encode("ab é 😀")) == "ab é 😀"
    assert ours.encode("ab") == [256]


def test_empty_tokens_are_kept_in_place(tmp_path: Path) -> None:
    ours = load(tiny(tmp_path, ["", "", "x y"], [NORMAL, UNUSED, USER]))
    assert ours.encode("x y") == [259]
    assert ours.decode([257, 258, 259]) == "x y"


def test_text_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    ours = load(write_vocabulary(path, "gpt2", ["a", "b", "ab"], merges=["a b"], pre="gpt-2"))
    assert ours.encode("ab") == [2]
    with pytest.raises(TokenizerError, match="no token for the byte 0x63"):
        ours.encode("abc")
    ours = load(write_vocabulary(path, "llama", ["<unk>", "▁", "a"], scores=[0.0] * 3, unknown_token_id=0))
    assert ours.encode("ac", add_special=False) == [1, 2, 0]
    ours = load(write_vocabulary(path, "llama", ["▁", "a"], scores=[0.0] * 2))
    with pytest.raises(TokenizerError, match="no token for 'c'"):
        ours.encode("ac")


TOO_LARGE = {f"{role}_token_id": 1 << 31 for role in ("bos", "eos", "eot", "eom", "unknown", "padding", "fim_pad")}
WRONG = [
    *(({key: value}, rf"{key} is 2147483648, but the vocabulary has 258 tokens") for key, value in TOO_LARGE.items()),
    ({"eos_token_id": 258}, "eos_token_id is 258"),
    ({"bos_token_id": "1"}, "bos_token_id is '1', no token id"),
    ({"bos_token_id": True}, "bos_token_id is True, no token id"),
    ({"add_bos_token": 1}, "add_bos_token is 1, no bool"),
    ({"add_bos_token": True}, "add_bos_token is true, but there is no bos_token_id"),
    ({"add_eos_token": True}, "add_eos_token is true, but there is no eos_token_id"),
    ({"pre": 3}, "pre is 3, no string"),
    ({"pre": "../x"}, "pre names the unknown pre-tokeniser '../x'"),
    ({"token_type": [NORMAL] * 257}, "token_type has 257 entries for 258 tokens"),
    ({"token_type": [NORMAL] * 257 + [9]}, "token_type gives token 257 the type 9"),
    ({"token_type": ["x"] * 258}, "token_type is no array of numbers"),
    ({"token_type": 3}, "token_type is 3, no array"),
    ({"merges": ["ab"]}, "merges has 'ab' as entry 0, not two tokens"),
    ({"merges": ["a b", "b "]}, "merges has 'b ' as entry 1, not two tokens"),
    ({"merges": [" b"]}, "merges has ' b' as entry 0, not two tokens"),
    ({"merges": ["a nothing"]}, r"merges has \('a', 'nothing'\) as entry 0, of which 'nothing' is no token"),
    ({"merges": [1, 2]}, "merges is an array of numbers"),
    ({"merges": "a b"}, "merges is 'a b', no array"),
    ({"tokens": ["a", "b", "a"]}, "tokens has 'a' twice, as ids 0 and 2"),
    ({"tokens": [1, 2]}, "tokens is an array of numbers"),
    ({"model": "t5"}, "model is 't5', but zoo reads the kinds llama, gpt2 and gemma4"),
    ({"model": "none"}, "model is 'none'"),
    ({"model": "llama"}, "scores is missing"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_wrong_keys(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tiny(tmp_path, ["<b>"], [CONTROL])
    with pytest.raises(TokenizerError, match=r"tiny.gguf: tokenizer.ggml." + message):
        load(path, overrides={f"tokenizer.ggml.{key}": value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.0, float("nan")], "scores gives token 1 no number"),
        ([0.0], "scores has 1 entries for 2 tokens"),
        ([0.0] * 3, "scores has 3 entries for 2 tokens"),
    ],
)
def test_wrong_scores(scores: list[float], message: str, tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "x.gguf", "llama", ["a", "b"], scores=scores)
    with pytest.raises(TokenizerError, match=r"x.gguf: tokenizer.ggml." + message):
        load(path)


def test_an_incomplete_set_of_byte_tokens(tmp_path: Path) -> None:
    tokens = [f"<0x{byte:02X}>" for byte in range(256) if byte != 0x41]
    path = write_vocabulary(tmp_path / "x.gguf", "llama", tokens, scores=[0.0] * 255)
    with pytest.raises(TokenizerError, match="has 255 byte tokens, not 256: <0x41> is missing"):
        load(path)


def test_an_empty_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="tokens is empty"):
        load(tiny(tmp_path), overrides={"tokenizer.ggml.tokens": []})


def test_a_file_without_a_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="model is missing: the file has no tokenizer") as error:
        load(tiny(tmp_path), overrides={"tokenizer.ggml.model": None})
    assert "Hugging Face directory" in error.value.remedy


def test_a_hostile_text_is_not_slow(tmp_path: Path) -> None:
    """No white space to cut at, and many false starts of special tokens: seconds mean a quadratic algorithm."""
    ours = load(spaced_file(tmp_path / "x.gguf"))
    for text in ("a" * 200_000, "<|" * 100_000, "<s><|u|" * 30_000, "▁" * 200_000, " \n" * 100_000):
        ids = ours.encode(text, parse_special=True)
        assert ours.decode(ids, skip_special=False).count("\n") == text.count("\n")
