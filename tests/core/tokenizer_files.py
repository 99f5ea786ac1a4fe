"""Small tokenizers for the tests: vocabularies trained by `tokenizers`, files written by the `gguf` package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = (
    TokenType.NORMAL,
    TokenType.UNKNOWN,
    TokenType.CONTROL,
    TokenType.USER_DEFINED,
    TokenType.UNUSED,
    TokenType.BYTE,
)

# What people type, a line for each kind: a tokenizer that is wrong about one of them is wrong about one line.
SAMPLES = {
    "prose": "The quick brown fox didn't jump; I'm sure they'll say IT'S over, we've seen. (Really?) He'D",
    "code": "def f(x: int) -> int:\n    if x != 0:\n\t\treturn x**2  # c\n\n\nfor(;;){a[i]+=b->c;}\r\n",
    "digits": "1 12 123 1234 12345 3.14159 1,000,000 2024-01-02 0x1F x86_64 ١٢٣ ½ Ⅷ ²",
    "cjk": "日本語のテキストとカタカナ、中文字符。한국어 텍스트입니다 漢字ABC漢字123",
    "emoji": "😀 👍🏽 👩‍👩‍👧 🇩🇪 ✨text✨ a😀b",
    "spaces": "  two   three    four \t tab\t\ttabs  end  ",
    "newlines": "a\nb\n\nc\n\n\n d\n \ne\r\n\r\nf \n  \n\n\tg\n",
    "accents": "café naïve Ünïcödé Straße ŁÓDŹ ﬁn ŉ Ǆ ǅ ǆ ß ẞ",
    "scripts": "مرحبا بالعالم שלום Привет МИР ελληνικά ภาษาไทย हिन्दी",
    "case": "iPhone HTTPServer camelCase SHOUTING McDonald aB Ab AB ab O'Neil ÀÉ àé",
    "symbols": "a+b=c <x|y> $5 €10 #tag @you ~/path/to/file.py https://e.org/?q=1&r=%20 «quoted» “so” ‘it’ 「や」…",
    "odd": "zero\u200bwidth nbsp\u00a0x ideographic\u3000y nul\x00 bell\x07 del\x7f \ufeffbom",
    "long": "a" * 70 + " " * 40 + "\n" * 40 + "-" * 70,
}


def _corpus() -> list[str]:
    return [text for text in SAMPLES.values() for _ in range(3)] + [
        "the then there 12 123 345 them  \n\n don't 日本 本語"
    ] * 3


@cache
def byte_level_vocabulary() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens and merges ("left right") of a byte-level BPE trained without any pre-tokeniser.

    Its merges cross words, digits and lines, so that ids depend on how text is cut beforehand.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=sorted(alphabet), max_token_length=8, show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return _vocabulary(tokenizer)


@cache
def spaced_vocabulary(*, crossing: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens and merges of a BPE on characters, with "▁" for spaces. `crossing`: there are tokens with "▁" inside."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n" if crossing else "▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=900, max_token_length=8, show_progress=False, limit_alphabet=200)
    tokenizer.train_from_iterator([text.replace("\0", "") for text in _corpus()], trainer)
    return _vocabulary(tokenizer)


def _vocabulary(tokenizer: Tokenizer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    state = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    return tuple(tokens), tuple(" ".join(merge) for merge in state["merges"])


def write_vocabulary(
    path: Path,
    model: str,
    tokens: Sequence[str | bytes],
    *,
    types: Sequence[int] | None = None,
    merges: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
    architecture: str = "llama",
    name: str = "",
    **keys: str | bool | int | Sequence[int],
) -> Path:
    """A GGUF file of a vocabulary alone; `keys` are written below `tokenizer.ggml.`."""
    writer = GGUFWriter(path, architecture)
    if name:
        writer.add_name(name)
    writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    if types is not None:
        writer.add_token_types(list(types))
    if merges is not None:
        writer.add_token_merges(list(merges))
    if scores is not None:
        writer.add_token_scores(list(scores))
    for key, value in keys.items():
        full = f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(full, value)
        elif isinstance(value, int):
            writer.add_uint32(full, value)
        elif isinstance(value, str):
            writer.add_string(full, value)
        else:
            writer.add_array(full, list(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level_file(path: Path, **keys: str | bool | int) -> Path:
    """A byte-level vocabulary with the control tokens <s>, </s>, <|u|> (ids 0 to 2) and the user-defined <user> (3)."""
    tokens, merges = byte_level_vocabulary()
    named = ["<s>", "</s>", "<|u|>", "<user>"]
    types = [CONTROL, CONTROL, CONTROL, USER] + [NORMAL] * len(tokens)
    keys = {"bos_token_id": 0, "eos_token_id": 1, **keys}
    return write_vocabulary(path, "gpt2", [*named, *tokens], types=types, merges=merges, **keys)


def spaced_tokens(*, crossing: bool) -> tuple[list[str], list[int]]:
    """Tokens and types of a SentencePiece vocabulary: <unk>, <s>, </s>, <|u|>, <user>, 256 bytes, then normal ones."""
    tokens, _ = spaced_vocabulary(crossing=crossing)
    special = ["<unk>", "<s>", "</s>", "<|u|>", "<user>"]
    types = [UNKNOWN, CONTROL, CONTROL, CONTROL, USER] + [BYTE] * 256 + [NORMAL] * len(tokens)
    return [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *tokens], types


def spaced_file(path: Path, *, crossing: bool = False, **keys: str | bool | int) -> Path:
    """A SentencePiece vocabulary whose scores fall with the id."""
    tokens, types = spaced_tokens(crossing=crossing)
    keys = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, **keys}
    return write_vocabulary(
        path, "llama", tokens, types=types, scores=[-float(id) for id in range(len(tokens))], **keys
    )
