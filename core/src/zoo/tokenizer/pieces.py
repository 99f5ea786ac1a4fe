"""The bytes that a token stands for, by the three ways in which vocabularies spell them."""

from __future__ import annotations

import re

SPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """The 256 characters that stand for bytes in byte-level vocabularies, with their bytes.

    Printable characters of Latin-1 stand for themselves, the others are numbered on from U+0100 (GPT-2, Radford et al.
    2019).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def raw_piece(token: str) -> bytes:
    """A token spelled as it is; bytes that were no UTF-8 come back as they were in the file."""
    return token.encode("utf-8", "surrogateescape")


def byte_level_piece(token: str, alphabet: dict[str, int]) -> bytes:
    """A token of a byte-level vocabulary; one that has characters of no byte is spelled as it is."""
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:
        return raw_piece(token)


def spaced_piece(token: str) -> bytes:
    """A token of a SentencePiece vocabulary, where "▁" is a space."""
    return raw_piece(token.replace(SPACE, " "))


def byte_token(token: str) -> bytes | None:
    """The byte of a token `<0xNN>`; None for any other token."""
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else None
