"""GGUF files put together byte by byte from the specification, so that any byte can be wrong."""

from __future__ import annotations

import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    """Also of a negative number: its two's complement."""
    return struct.pack("<Q", value % (1 << 64))


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + u32(kind) + value


def array(kind: int, values: bytes, count: int) -> bytes:
    return u32(kind) + u64(count) + values


def strings(*texts: str | bytes) -> bytes:
    return array(STRING, b"".join(map(string, texts)), len(texts))


def tensor(
    name: str | bytes, extents: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, dims: int | None = None
) -> bytes:
    """An entry of the tensor table; `extents` innermost first."""
    head = string(name) + u32(len(extents) if dims is None else dims)
    return head + b"".join(map(u64, extents)) + u32(kind) + u64(offset)


def gguf(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    pair_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = u64(len(tensors) if tensor_count is None else tensor_count)
    counts += u64(len(pairs) if pair_count is None else pair_count)
    header = magic + u32(version) + counts + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % alignment if tensors else 0) + data
