"""Small tekken.json files in the form of Mistral's, and tiktoken on the same vocabulary as a yardstick."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiktoken

from oracle.checkpoints import vocabulary

# As Mistral publishes it.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[THINK]", "[/THINK]")
RESERVED = 16


def words() -> list[bytes]:
    """The 256 bytes, then what the merges of the tiny vocabulary make, in their order.

    The last word goes across cases: the pattern keeps text from becoming it but where cases are ignored.
    """
    alphabet = byte_characters()
    merged = [bytes(alphabet[character] for character in left + right) for left, right in vocabulary()[1]]
    return [bytes([byte]) for byte in range(256)] + [*dict.fromkeys(merged), b"iP"]


def byte_characters() -> dict[str, int]:
    """The byte of each character of GPT-2's alphabet."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def tekken(specials: Sequence[str] | None = SPECIALS, *, extra: int = 5, version: str = "v13") -> dict[str, Any]:
    """The content of a file; `extra` words stand behind those that count. `specials` None: the file lists none."""
    ordinary = words()
    listed = [*ordinary, *(b"\xff\xfe" + bytes([n]) for n in range(extra))]
    content: dict[str, Any] = {
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(listed),
            "default_vocab_size": len(ordinary) + (RESERVED if specials is not None else 20),
            "default_num_special_tokens": RESERVED if specials is not None else 20,
            "version": version,
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": word.decode("utf-8", "replace")}
            for rank, word in enumerate(listed)
        ],
    }
    if specials is not None:
        content["special_tokens"] = [
            {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(specials)
        ]
    return content


def write_tekken(directory: Path, content: dict[str, Any] | None = None) -> None:
    """Write tekken.json."""
    (directory / "tekken.json").write_text(json.dumps(content or tekken()), encoding="utf-8")


def tiktoken_ids(text: str, reserved: int = RESERVED) -> list[int]:
    """Ids of text without special tokens, by tiktoken."""
    ranks = {word: rank for rank, word in enumerate(words())}
    encoding = tiktoken.Encoding(name="tekken", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    return [reserved + rank for rank in encoding.encode(text)]
