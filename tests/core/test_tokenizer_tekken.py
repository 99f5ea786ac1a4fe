"""tekken.json against tiktoken, for which Mistral's files are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from oracle.tekken import RESERVED, tekken, tiktoken_ids, words, write_tekken
from zoo.errors import TokenizerError
from zoo.source import ModelSource
from zoo.tokenizer import Tokenizer, load_tokenizer

TEXTS = (
    "",
    " ",
    "Hello, world",
    "the theory of the then, 3.14159 other words\n\n  indented\n",
    "It isn't WHAT they'd say: HTTPServer XMLHttp iPhone",
    "1234567 12345\t\t٣٤٥",
    "天地玄黄 日本語 Привет Ünïcödé é́",
    "🤖👩‍👩‍👧 \x00\x7f\u200b",
    "path/to//file\r\n\r\n   ",
    "user text with </s> and [INST] in it",
)


def make(directory: Path, content: dict[str, Any] | None = None) -> Path:
    save_file({"norm.weight": torch.ones(1)}, directory / "consolidated.safetensors")
    (directory / "params.json").write_text("{}")
    write_tekken(directory, content)
    return directory


def load(directory: Path) -> Tokenizer:
    with ModelSource.open(directory) as source:
        return load_tokenizer(source)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load(make(tmp_path_factory.mktemp("tekken")))


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_tiktoken(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special=False)
    assert ids == tiktoken_ids(text)
    assert tokenizer.decode(ids) == text


@given(st.text(alphabet=st.sampled_from("theory of 12 \n\tTHE'sé天🤖/."), max_size=60) | st.text(max_size=20))
def test_ids_of_any_text_equal_tiktoken(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special=False)
    assert ids == tiktoken_ids(text)
    assert tokenizer.decode(ids) == text


def test_merges_are_used(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("the theory", add_special=False)) < 8


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id) == (1, 2, 0, None)
    assert tokenizer.eog_ids == {2}
    assert tokenizer.vocab_size == RESERVED + len(words())
    assert tokenizer.encode("a") == [1, *tiktoken_ids("a")]
    assert tokenizer.encode("<s>[INST] a[/INST]", add_special=False, parse_special=True) == [
        1, 3, *tiktoken_ids(" a"), 4,
    ]  # fmt: skip
    assert tokenizer.token(5) == "[THINK]"
    assert tokenizer.token(RESERVED - 1) == f"<SPECIAL_{RESERVED - 1}>"
    assert tokenizer.decode([1, 3, *tiktoken_ids("a b"), 2]) == "a b"
    assert tokenizer.decode([3, *tiktoken_ids("a")], skip_special=False) == "[INST]a"


def test_older_files_list_no_special_tokens(tmp_path: Path) -> None:
    tokenizer = load(make(tmp_path, tekken(None, version="v3")))
    assert tokenizer.encode("[TOOL_CALLS]x<pad>", add_special=False, parse_special=True) == [
        9, *tiktoken_ids("x", 20), 11,
    ]  # fmt: skip
    assert tokenizer.pad_id == 11
    assert tokenizer.token(19) == "[TOOL_CONTENT]"


def test_a_character_in_bytes_is_streamed_whole(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(id) for id in tiktoken_ids("🤖")]
    assert len(pieces) == 4
    assert pieces == ["", "", "", "🤖"]


def test_tokenizer_json_comes_first(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load(tmp_path)


def swap_words(content: dict[str, Any]) -> None:
    content["vocab"][0]["token_bytes"], content["vocab"][1]["token_bytes"] = "AQ==", "AA=="


Edit = Callable[[dict[str, Any]], object]
BAD: dict[str, tuple[Edit, str]] = {
    "no config": (lambda c: c.pop("config"), "config is a NoneType"),
    "no vocab": (lambda c: c.pop("vocab"), "vocab has no tokens"),
    "vocab short": (lambda c: c["config"].update(default_vocab_size=10_000), "vocab has .* tokens, config asks for"),
    "vocab tiny": (lambda c: c["config"].update(default_vocab_size=100), "config asks for 84"),
    "size a text": (lambda c: c["config"].update(default_vocab_size="320"), "default_vocab_size is '320'"),
    "size huge": (lambda c: c["config"].update(default_num_special_tokens=1 << 40), "default_num_special_tokens is"),
    "pattern missing": (lambda c: c["config"].pop("pattern"), r"config\.pattern is '\('"),
    "pattern broken": (lambda c: c["config"].update(pattern="(["), r"config\.pattern is '\(\['"),
    "rank out of order": (lambda c: c["vocab"][7].update(rank=9), r"vocab\[7\]"),
    "word without bytes": (lambda c: c["vocab"][7].pop("token_bytes"), r"vocab\[7\]"),
    "word no base64": (lambda c: c["vocab"][260].update(token_bytes="é!"), r"vocab\[260\]\.token_bytes is 'é!'"),
    "bytes out of order": (swap_words, "256 bytes"),
    "word twice": (lambda c: c["vocab"][260].update(token_bytes=c["vocab"][261]["token_bytes"]), "twice"),
    "word empty": (lambda c: c["vocab"][260].update(token_bytes=""), "empty"),
    "special twice": (lambda c: c["special_tokens"][3].update(token_str="<s>"), "special_tokens has a token twice"),
    "special no text": (lambda c: c["special_tokens"][3].update(token_str=5), r"special_tokens\[3\]"),
    "no bos": (lambda c: c["special_tokens"][1].update(token_str="<b>"), "lacks <s>"),
    "too many specials": (
        lambda c: c.update(special_tokens=[{"rank": r, "token_str": f"<{r}>"} for r in range(RESERVED + 1)]),
        r"special_tokens has 17 entries",
    ),
    "specials no list": (lambda c: c.update(special_tokens={"a": 1}), r"special_tokens\[0\]"),
    "new and no specials": (lambda c: c.pop("special_tokens"), "special_tokens is missing"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_damaged_file_is_refused(fault: str, tmp_path: Path) -> None:
    edit, message = BAD[fault]
    content = tekken()
    edit(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load(make(tmp_path, content))
    assert "tekken.json" in caught.value.message
    assert caught.value.remedy
