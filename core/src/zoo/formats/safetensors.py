"""A strict reader of safetensors: one file, or the shards of a checkpoint.

Only headers are read; tensors stay in the mapped files. The rules are those of the format's own text (README of
safetensors, "Format"), also where its library is laxer: a key that comes twice is an error.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeGuard

from zoo.errors import SafetensorsError, WeightError
from zoo.formats import strictjson
from zoo.formats.mapped import MappedFile
from zoo.formats.tensor import TensorInfo

# Bits of one element. F4 and F6 are packed without gaps.
DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E4M3": 8,
        "F8_E5M2": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "U16": 16,
        "I16": 16,
        "F16": 16,
        "BF16": 16,
        "U32": 32,
        "I32": 32,
        "F32": 32,
        "U64": 64,
        "I64": 64,
        "F64": 64,
        "C64": 64,
    }
)

_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMS = 64
_MAX_ELEMENTS = (1 << 63) - 1
_DAMAGED = "the file is damaged or not completely downloaded: fetch it again"
# DeepSeek writes five digits for the shard and six for their number.
_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>0?\d{5})\.safetensors", re.DOTALL)


class SafetensorsFile:
    """One file, its header checked. `metadata` is its `__metadata__`; `tensors` are in the order of their bytes."""

    def __init__(self, path: Path) -> None:
        """Open and check. Raises SafetensorsError for whatever breaks the format."""
        self.path = path
        self.file = MappedFile(path, SafetensorsError)
        header, self._data = self._header()
        self.metadata: Mapping[str, str] = self._metadata(header.pop("__metadata__", None))
        infos = sorted((self._tensor(*entry) for entry in header.items()), key=lambda info: (info.offset, info.nbytes))
        position = self._data
        for info in infos:
            if info.offset != position:
                fault = "overlaps" if info.offset < position else "leaves a hole after"
                self._fail(f"tensor {info.name!r} {fault} the one before it", info.offset)
            position += info.nbytes
        if position != self.file.size:
            self._fail(f"the tensors end here, but the file has {self.file.size} bytes", position)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({info.name: info for info in infos})

    def read(self, name: str) -> memoryview:
        """The bytes of a tensor, read-only and not copied. Raises WeightError for a name that is not there."""
        return _read(name, self.tensors, {self.path: self.file})

    def close(self) -> None:
        """Let go of the file. Views taken before stay valid."""
        self.file.close()

    def _fail(self, message: str, position: int, remedy: str = _DAMAGED) -> NoReturn:
        raise SafetensorsError(message, path=self.path, position=position, remedy=remedy)

    def _header(self) -> tuple[dict[str, Any], int]:
        size = self.file.size
        if size < 10:
            self._fail(f"has {size} bytes, too few for a header", size)
        length = int.from_bytes(self.file.view(0, 8), "little")
        if length > _MAX_HEADER_BYTES or length > size - 8:
            self._fail(f"claims a header of {length} bytes (the file has {size}, {_MAX_HEADER_BYTES} are allowed)", 0)
        raw = bytes(self.file.view(8, length))
        if not raw.startswith(b"{"):
            self._fail(f"the header begins with {raw[:8]!r}, not with '{{'", 8)
        try:
            header = strictjson.parse(raw)
        except ValueError as problem:
            self._fail(f"the header is no valid JSON: {problem}", 8)
        return header, 8 + length

    def _metadata(self, value: object) -> Mapping[str, str]:
        if value is None:
            return MappingProxyType({})
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            self._fail("__metadata__ is no map of strings", 8)
        return MappingProxyType(value)

    def _tensor(self, name: str, entry: object) -> TensorInfo:
        if not name.isprintable():
            self._fail(f"the tensor name {name[:80]!r} has characters that cannot be printed", 8)
        if not isinstance(entry, dict):
            self._fail(f"the entry of tensor {name!r} is no object", 8)
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
            remedy = f"known are {', '.join(DTYPE_BITS)}; convert the file, or update zoo"
            self._fail(f"tensor {name!r} has the unknown dtype {dtype!r}", 8, remedy)
        if not _counts(shape) or len(shape) > _MAX_DIMS or (numel := math.prod(shape)) > _MAX_ELEMENTS:
            self._fail(f"tensor {name!r} has the impossible shape {str(shape)[:80]}", 8)
        if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= self.file.size - self._data:
            self._fail(f"tensor {name!r} lies at {str(offsets)[:80]}, not inside the data of the file", 8)
        begin, end = offsets
        if numel * DTYPE_BITS[dtype] != (end - begin) * 8:
            self._fail(f"tensor {name!r} of {dtype} {shape} has {end - begin} bytes", 8)
        return TensorInfo(name, dtype, tuple(shape), self.path, self._data + begin, end - begin)


class SafetensorsSet:
    """The safetensors of a checkpoint: one file, or its shards. `metadata` is that of the first file."""

    def __init__(self, files: Sequence[SafetensorsFile]) -> None:
        self.paths = tuple(file.path for file in files)
        self.metadata = files[0].metadata
        tensors: dict[str, TensorInfo] = {}
        for file in files:
            for name, info in file.tensors.items():
                if name in tensors:
                    message = f"tensor {name!r} is also in {tensors[name].path}"
                    raise SafetensorsError(message, path=file.path, remedy=_DAMAGED)
                tensors[name] = info
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self._files = {file.path: file.file for file in files}

    @classmethod
    def open(cls, path: Path) -> SafetensorsSet:
        """Open a .safetensors file (of a shard: the whole set), or the checkpoint in a directory.

        In a directory `model.safetensors` comes before an index, as in transformers. Raises SafetensorsError when a
        file is damaged, a shard is missing, or it is not clear which files make up the checkpoint.
        """
        if path.is_dir():
            return cls._open_directory(path)
        match = _SHARD_NAME.fullmatch(path.name)
        if match is None:
            return cls([SafetensorsFile(path)])
        index = path.with_name(f"{match['stem']}.safetensors.index.json")
        by_index = index.exists()
        whole = cls._open_index(index) if by_index else cls._open_shards(path.parent, match["stem"], match["count"])
        if path not in whole.paths:
            found = f"is named as a shard, but {index.name if by_index else 'its count of shards'} leaves it out"
            raise SafetensorsError(found, path=path, remedy="name a file of the model, or fetch its index again")
        return whole

    @classmethod
    def _open_directory(cls, path: Path) -> SafetensorsSet:
        names = sorted(name for name in os.listdir(path) if name.endswith(".safetensors"))
        if "model.safetensors" in names:
            return cls([SafetensorsFile(path / "model.safetensors")])
        indexes = sorted(name for name in os.listdir(path) if name.endswith(".safetensors.index.json"))
        index = "model.safetensors.index.json"
        if index in indexes or len(indexes) == 1:
            return cls._open_index(path / (index if index in indexes else indexes[0]))
        shards = [match for name in names if (match := _SHARD_NAME.fullmatch(name))]
        sets = sorted({(match["stem"], match["count"]) for match in shards})
        if len(sets) == 1 and len(shards) == len(names):
            return cls._open_shards(path, *sets[0])
        if len(names) == 1:
            return cls([SafetensorsFile(path / names[0])])
        if not names:
            raise SafetensorsError("holds no .safetensors file", path=path, remedy="name the directory of a model")
        raise SafetensorsError(
            f"holds several safetensors files and no index that says which belong together: {_some(names)}",
            path=path,
            remedy="name the file to open, or download model.safetensors.index.json too",
        )

    @classmethod
    def _open_shards(cls, directory: Path, stem: str, count: str) -> SafetensorsSet:
        if not int(count):
            raise SafetensorsError(f"{stem!r} is named as a set of no shards", path=directory, remedy=_DAMAGED)
        names = [f"{stem}-{number:05}-of-{count}.safetensors" for number in range(1, int(count) + 1)]
        _require(directory, names, f"of the {int(count)} shards of {stem!r}")
        return cls([SafetensorsFile(directory / name) for name in names])

    @classmethod
    def _open_index(cls, index: Path) -> SafetensorsSet:
        """Open what an index lists. Its values come from strangers: plain file names only, never a path."""
        weight_map = _weight_map(index)
        names = sorted(set(weight_map.values()))
        _require(index.parent, names, f"of the files in {index.name}")
        whole = cls([SafetensorsFile(index.parent / name) for name in names])
        for tensor, name in weight_map.items():
            info = whole.tensors.get(tensor)
            if info is None or info.path.name != name:
                found = "none of its files has it" if info is None else f"it lies in {info.path.name}"
                message = f"says that tensor {tensor!r} is in {name}, but {found}"
                raise SafetensorsError(
                    message, path=index, remedy="the index is of another version: fetch all files again"
                )
        return whole

    def read(self, name: str) -> memoryview:
        """The bytes of a tensor, read-only and not copied. Raises WeightError for a name that is not there."""
        return _read(name, self.tensors, self._files)

    def release(self, address: int, nbytes: int) -> None:
        """Give mapped memory back: see MappedFile."""
        for file in self._files.values():
            file.release(address, nbytes)

    def close(self) -> None:
        """Let go of the files. Views taken before stay valid."""
        for file in self._files.values():
            file.close()


def _read(name: str, tensors: Mapping[str, TensorInfo], files: Mapping[Path, MappedFile]) -> memoryview:
    info = tensors.get(name)
    if info is None:
        raise WeightError(f"{next(iter(files))} has no tensor {name!r}", remedy="see `zoo inspect` for the names")
    return files[info.path].view(info.offset, info.nbytes)


def _counts(value: object) -> TypeGuard[list[int]]:
    """Whether this is a list of integers that count something. JSON's true is an int to Python."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MAX_ELEMENTS for item in value)


def _weight_map(index: Path) -> dict[str, str]:
    file = MappedFile(index, SafetensorsError)
    if file.size > _MAX_HEADER_BYTES:
        message = f"has {file.size} bytes, more than the {_MAX_HEADER_BYTES} allowed"
        raise SafetensorsError(message, path=index, remedy=_DAMAGED)
    try:
        content = strictjson.parse(bytes(file.view(0, file.size)))
    except ValueError as problem:
        raise SafetensorsError(f"is no valid JSON: {problem}", path=index, remedy=_DAMAGED) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise SafetensorsError("has no object 'weight_map' of tensors", path=index, remedy=_DAMAGED)
    for tensor, name in weight_map.items():
        plain = isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\\0")
        if not plain:
            raise SafetensorsError(
                f"places tensor {tensor!r} in {str(name)[:80]!r}, which is no plain .safetensors file name",
                path=index,
                remedy="do not use this checkpoint: its index points outside its directory",
            )
    return weight_map


def _require(directory: Path, names: Sequence[str], which: str) -> None:
    present = set(os.listdir(directory))
    if missing := [name for name in names if name not in present]:
        message = f"{len(missing)} {which} are missing: {_some(missing)}"
        raise SafetensorsError(message, path=directory, remedy="download them into this directory")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
