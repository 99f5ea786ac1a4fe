"""A strict reader of GGUF (versions 2 and 3), whole or in shards.

Only headers are read; tensors and arrays stay in the mapped file. Every length is checked against the file before it is
used, so a hostile file costs one GGUFError, never memory or time.

Source: the GGUF specification (`docs/gguf.md` of ggml); limits as in llama.cpp's `gguf.cpp`, or tighter.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from zoo.errors import GGUFError, WeightError
from zoo.formats.ggml import GGML_TYPES, REMOVED_TYPES
from zoo.formats.gguf_values import ARRAY, BOOL, SCALARS, STRING, GGUFArray, MetaValue
from zoo.formats.mapped import MappedFile
from zoo.formats.tensor import TensorInfo

__all__ = ["GGUFArray", "GGUFFile", "MetaValue", "shard_set"]

_U8, _U32, _U64 = struct.Struct("<B"), struct.Struct("<I"), struct.Struct("<Q")
_ALIGNMENT_TYPE = 4

_DEFAULT_ALIGNMENT = 32
_MIN_ALIGNMENT, _MAX_ALIGNMENT = 8, 1 << 20
_MAX_KEY_BYTES = 1 << 16
_MAX_STRING_BYTES = 64 << 20
_MAX_NAME_BYTES = 255
_MAX_DIMS = 4
_MAX_ELEMENTS = (1 << 63) - 1
# All arrays of one header together: the largest real vocabularies stay below a tenth of it. Bounds the walk over
# strings in a sparse file whose length allows billions of empty ones.
_MAX_ARRAY_ITEMS = 1 << 24
# Far above any real header, which has some hundred keys, at most 70k tensors (each expert apart) and 20 MB.
_MAX_PAIRS, _MAX_TENSORS = 1 << 16, 1 << 18
_MAX_HEADER_BYTES = 256 << 20
_MIN_KV_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8

_DAMAGED = "the file is damaged or not completely downloaded: fetch it again"
_REMAKE = "make the file again with a current llama.cpp"
_SHARD_NAME = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.DOTALL | re.IGNORECASE
)


class _Reader:
    """A cursor over the header of one file. Each method checks the bytes that it needs before it takes them."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.data = file.view(0, file.size)
        self.end = file.size
        self.position = 0
        self.array_items = 0

    def fail(self, message: str, *, position: int | None = None, remedy: str = _DAMAGED) -> NoReturn:
        at = self.position if position is None else position
        raise GGUFError(message, path=self.file.path, position=at, remedy=remedy)

    def need(self, nbytes: int, what: str) -> None:
        if nbytes > self.end - self.position:
            self.fail(f"{what} needs {nbytes} bytes, but only {self.end - self.position} are left")

    def number(self, form: struct.Struct, what: str) -> Any:
        self.need(form.size, what)
        (value,) = form.unpack_from(self.data, self.position)
        self.position += form.size
        return value

    def string(self, what: str, limit: int) -> bytes:
        start = self.position
        length = self.number(_U64, f"the length of {what}")
        if length > limit:
            self.fail(f"{what} claims {length} bytes, more than the {limit} allowed", position=start)
        self.need(length, what)
        self.position += length
        return bytes(self.data[self.position - length : self.position])

    def text(self, what: str, limit: int) -> str:
        """A string that names something: not empty, UTF-8 and printable, as it turns up in errors and listings."""
        start = self.position
        raw = self.string(what, limit)
        if not raw:
            self.fail(f"{what} is empty", position=start)
        name = raw.decode("utf-8", "surrogateescape")
        if not name.isprintable():
            self.fail(f"{what} is no printable UTF-8: {raw[:40]!r}", position=start)
        return name

    def value(self, kind: int, key: str) -> MetaValue:
        if kind == STRING:
            return self.string(f"the value of {key}", _MAX_STRING_BYTES).decode("utf-8", "surrogateescape")
        if kind == ARRAY:
            return self.items(key)
        if kind not in SCALARS:
            self.fail(f"{key} has the unknown value type {kind}", position=self.position - 4)
        if kind == BOOL:
            if (byte := self.number(_U8, key)) > 1:
                self.fail(f"{key} is a bool of the value {byte}", position=self.position - 1)
            return bool(byte)
        result: int | float = self.number(SCALARS[kind][1], key)
        return result

    def items(self, key: str) -> GGUFArray:
        """An array: its lengths are checked, its elements stay where they are."""
        kind = self.number(_U32, f"the element type of {key}")
        if kind == ARRAY:
            message = f"{key} is an array of arrays, which nothing supports"
            self.fail(message, position=self.position - 4, remedy=_REMAKE)
        if kind != STRING and kind not in SCALARS:
            self.fail(f"{key} is an array of the unknown type {kind}", position=self.position - 4)
        at = self.position
        count = self.number(_U64, f"the length of {key}")
        size = 8 if kind == STRING else SCALARS[kind][1].size
        start, left = self.position, self.end - self.position
        if count > left // size:
            self.fail(f"{key} claims {count} elements, more than fit into the {left} bytes left", position=at)
        self.array_items += count
        if self.array_items > _MAX_ARRAY_ITEMS:
            self.fail(f"the arrays up to {key} have more than {_MAX_ARRAY_ITEMS} elements", position=at)
        if kind == STRING:
            return GGUFArray(self.file, kind, self.string_bounds(key, count))
        self.position += count * size
        if kind == BOOL and (bad := bytes(self.data[start : self.position]).translate(None, b"\0\1")):
            self.fail(f"{key} is an array of bools that has the value {bad[0]}", position=start)
        return GGUFArray(self.file, kind, range(start, self.position + 1, size))

    def string_bounds(self, key: str, count: int) -> Sequence[int]:
        """Walk over `count` strings. A tight loop: vocabularies have up to 262k tokens and as many merges."""
        position, end, data, unpack = self.position, self.end, self.data, _U64.unpack_from
        bounds = array("Q", [position])
        append = bounds.append
        try:
            for _ in range(count):
                position += unpack(data, position)[0] + 8
                if position > end:
                    break
                append(position)
        except struct.error:
            self.fail(f"element {len(bounds) - 1} of {key} begins where the file ends", position=bounds[-1])
        if len(bounds) <= count:
            self.fail(f"element {len(bounds) - 1} of {key} reaches past the end of the file", position=bounds[-1])
        self.position = position
        return bounds


@dataclass(frozen=True)
class _Shard:
    """One file of a set, its header checked."""

    file: MappedFile
    version: int
    alignment: int
    metadata: Mapping[str, MetaValue]
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: Path) -> _Shard:
        file = MappedFile(path, GGUFError)
        reader = _Reader(file)
        version = _read_version(reader)
        tensor_count = reader.number(_U64, "the number of tensors")
        pair_count = reader.number(_U64, "the number of metadata keys")
        if pair_count > min((reader.end - reader.position) // _MIN_KV_BYTES, _MAX_PAIRS):
            reader.fail(f"claims {pair_count} metadata keys in {reader.end} bytes", position=16)
        if tensor_count > min((reader.end - reader.position) // _MIN_TENSOR_BYTES, _MAX_TENSORS):
            reader.fail(f"claims {tensor_count} tensors in {reader.end} bytes", position=8)
        metadata, alignment = _read_metadata(reader, pair_count)
        tensors = _read_tensors(reader, tensor_count, alignment)
        return cls(file, version, alignment, MappingProxyType(metadata), MappingProxyType(tensors))

    def split_key(self, key: str) -> int | None:
        value = self.metadata.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise GGUFError(f"{key} is {value!r}, no count", path=self.file.path, remedy=_DAMAGED)
        return value


class GGUFFile:
    """A GGUF model: one file, or all shards of a set.

    `version`, `alignment` and `metadata` are those of the first shard, `tensors` those of all shards in file order.
    Tensors and arrays of the metadata are views of the mapped files.
    """

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self.paths = tuple(shard.file.path for shard in shards)
        self.version = shards[0].version
        self.alignment = shards[0].alignment
        self.metadata = shards[0].metadata
        tensors: dict[str, TensorInfo] = {}
        for shard in shards:
            for name, info in shard.tensors.items():
                if name in tensors:
                    raise GGUFError(f"tensor {name!r} is also in {tensors[name].path}", path=info.path, remedy=_DAMAGED)
                tensors[name] = info
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self._files = {shard.file.path: shard.file for shard in shards}

    @classmethod
    def open(cls, path: Path) -> GGUFFile:
        """Open a file, and with any shard of a set the whole set. Raises GGUFError for whatever breaks the format."""
        first = _Shard.open(path)
        count = first.split_key("split.count") or 1
        if count == 1:
            return cls([first])
        paths = _shard_paths(first, count)
        shards = [first if other == path else _Shard.open(other) for other in paths]
        for number, shard in enumerate(shards):
            found = (shard.split_key("split.no"), shard.split_key("split.count"))
            if found != (number, count):
                message = f"is named as shard {number + 1} of {count}, but split.no, split.count are {found}"
                remedy = "give the shards the names they were made with, or fetch them again"
                raise GGUFError(message, path=shard.file.path, remedy=remedy)
        whole = cls(shards)
        expected = first.split_key("split.tensors.count")
        if expected != len(whole.tensors):
            raise GGUFError(
                f"split.tensors.count is {expected}, but the {count} shards hold {len(whole.tensors)} tensors",
                path=path,
                remedy="the shards are of different models or damaged: fetch them again",
            )
        return whole

    def read(self, name: str) -> memoryview:
        """The bytes of a tensor, read-only and not copied. Raises WeightError for a name that is not there."""
        info = self.tensors.get(name)
        if info is None:
            raise WeightError(f"{self.paths[0]} has no tensor {name!r}", remedy="see `zoo inspect` for the names")
        return self._files[info.path].view(info.offset, info.nbytes)

    def release(self, address: int, nbytes: int) -> None:
        """Give mapped memory back: see MappedFile."""
        for file in self._files.values():
            file.release(address, nbytes)

    def close(self) -> None:
        """Let go of the files. Views taken before stay valid; arrays of the metadata do not."""
        for file in self._files.values():
            file.close()


def _read_version(reader: _Reader) -> int:
    magic = bytes(reader.data[:4])
    if magic != b"GGUF":
        remedy = "the download is not complete" if b"GGUF".startswith(magic) else "name a file in GGUF format"
        reader.fail(f"begins with {magic!r}, not with b'GGUF'", remedy=remedy)
    reader.position = 4
    version = int(reader.number(_U32, "the version"))
    if version in (2, 3):
        return version
    if version == 1:
        reader.fail("has GGUF version 1, which is out of use", position=4, remedy=_REMAKE)
    if version and not version & 0xFFFF:
        remedy = "convert it with gguf_convert_endian of the gguf package"
        reader.fail("is a big-endian file", position=4, remedy=remedy)
    reader.fail(f"has the unknown GGUF version {version}", position=4, remedy="versions 2 and 3 are known; update zoo")


def _read_metadata(reader: _Reader, count: int) -> tuple[dict[str, MetaValue], int]:
    metadata: dict[str, MetaValue] = {}
    alignment = _DEFAULT_ALIGNMENT
    for index in range(count):
        start = reader.position
        key = reader.text(f"metadata key {index}", _MAX_KEY_BYTES)
        if key in metadata:
            reader.fail(f"the metadata key {_brief(key)} comes twice", position=start)
        kind = reader.number(_U32, f"the value type of {_brief(key)}")
        metadata[key] = value = reader.value(kind, _brief(key))
        if reader.position > _MAX_HEADER_BYTES:
            reader.fail(f"the metadata up to {_brief(key)} takes more than {_MAX_HEADER_BYTES} bytes", position=start)
        if key == "general.alignment":
            power = isinstance(value, int) and value > 0 and value & (value - 1) == 0
            if kind != _ALIGNMENT_TYPE or not power or not _MIN_ALIGNMENT <= int(str(value)) <= _MAX_ALIGNMENT:
                wanted = f"a u32 power of two from {_MIN_ALIGNMENT} to {_MAX_ALIGNMENT}"
                reader.fail(f"general.alignment is {value!r} (value type {kind}), not {wanted}", position=start)
            alignment = int(str(value))
    return metadata, alignment


def _read_tensors(reader: _Reader, count: int, alignment: int) -> dict[str, TensorInfo]:
    """Read the tensor table, then check where each tensor lies. `offset` in the file counts from the data section."""
    found: dict[str, tuple[TensorInfo, int]] = {}
    for index in range(count):
        start = reader.position
        info = _read_tensor(reader, index, alignment)
        if info.name in found:
            reader.fail(f"tensor {_brief(info.name)} comes twice", position=start)
        found[info.name] = (info, start)
    data = -(-reader.position // alignment) * alignment
    last, previous = data, "the header"
    for info, start in sorted(found.values(), key=lambda entry: entry[0].offset):
        begin, end = data + info.offset, data + info.offset + info.nbytes
        if end > reader.end:
            reader.fail(f"tensor {_brief(info.name)} lies at bytes {begin}-{end} of {reader.end}", position=start)
        if begin < last:
            reader.fail(f"tensor {_brief(info.name)} overlaps {previous}", position=start)
        if begin - last >= alignment:
            message = f"{reader.file.path}: {begin - last} bytes before tensor {_brief(info.name)} belong to nothing"
            warnings.warn(message, stacklevel=2)
        last, previous = end, f"tensor {_brief(info.name)}"
    return {
        name: TensorInfo(name, info.type, info.shape, info.path, data + info.offset, info.nbytes)
        for name, (info, _) in found.items()
    }


def _read_tensor(reader: _Reader, index: int, alignment: int) -> TensorInfo:
    start = reader.position
    name = reader.text(f"the name of tensor {index}", _MAX_NAME_BYTES)
    shown = _brief(name)
    dims = reader.number(_U32, f"the dimensions of tensor {shown}")
    if not 1 <= dims <= _MAX_DIMS:
        reader.fail(f"tensor {shown} has {dims} dimensions, not 1 to {_MAX_DIMS}", position=start)
    extents = [reader.number(_U64, f"an extent of tensor {shown}") for _ in range(dims)]
    elements = 1
    for extent in extents:
        elements *= extent
    if not 1 <= elements <= _MAX_ELEMENTS:
        reader.fail(f"tensor {shown} has the impossible extents {extents}", position=start)
    kind = reader.number(_U32, f"the type of tensor {shown}")
    if kind in REMOVED_TYPES:
        reader.fail(f"tensor {shown} has the type {REMOVED_TYPES[kind]}, out of use", position=start, remedy=_REMAKE)
    if kind not in GGML_TYPES:
        reader.fail(
            f"tensor {shown} has the unknown type {kind}", position=start, remedy="update zoo, or fetch it again"
        )
    block = GGML_TYPES[kind]
    try:
        nbytes = block.row_bytes(extents[0]) * (elements // extents[0])
    except ValueError as problem:
        reader.fail(f"tensor {shown}: {problem}", position=start)
    offset = reader.number(_U64, f"the offset of tensor {shown}")
    if offset % alignment:
        reader.fail(f"tensor {shown} lies at {offset}, no multiple of the alignment {alignment}", position=start)
    return TensorInfo(name, block.name, tuple(reversed(extents)), reader.file.path, offset, nbytes)


def _shard_paths(shard: _Shard, count: int) -> list[Path]:
    """The files of the set that `shard` is of, by its name. Raises GGUFError naming those that are missing."""
    path = shard.file.path
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count or not 1 <= int(match["number"]) <= count:
        raise GGUFError(
            f"is one of {count} shards, but its name does not end in -00001-of-{count:05}.gguf or the like",
            path=path,
            remedy="give all shards the names they were made with, in one directory",
        )
    names = [f"{match['stem']}-{number:05}-of-{count:05}{match['suffix']}" for number in range(1, count + 1)]
    present = set(os.listdir(path.parent))
    if missing := [name for name in names if name not in present]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise GGUFError(
            f"{len(missing)} of {count} shards are missing: {', '.join(missing[:3])}{more}",
            path=path,
            remedy=f"put them into {path.parent}",
        )
    return [path.with_name(name) for name in names]


def shard_set(name: str) -> str:
    """The name that all shards of one set have in common; of any other file, its own name."""
    match = _SHARD_NAME.fullmatch(name)
    return name if match is None else f"{match['stem']}-of-{match['count']}{match['suffix']}"


def _brief(name: str) -> str:
    """A name from a file as an error shows it: quoted, and not longer than a line."""
    return repr(name) if len(name) <= 80 else f"{name[:80]!r}..."
