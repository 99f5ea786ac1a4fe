"""From a path that a user names to the file or directory that holds the model, or to a refusal with the way out."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, TypeAlias

from zoo.errors import SourceError
from zoo.formats.gguf import shard_set

Format: TypeAlias = Literal["gguf", "safetensors"]

POINTER = b"version https://git-lfs"
_MAX_SAFETENSORS_HEADER = 100_000_000
_TO_SAFETENSORS = "get the safetensors or GGUF form of the model, or convert it with a tool that you trust"
_PICKLE = "a pickle, which can run any code when it is opened"

# Names of weight files that are refused, and what they are.
_REFUSED_NAMES: tuple[tuple[str, str], ...] = (
    *((pattern, _PICKLE) for pattern in ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")),
    ("*.onnx", "an ONNX graph"),
    ("*.h5", "a Keras or TensorFlow checkpoint"),
    ("*.msgpack", "a Flax checkpoint"),
    ("*.tflite", "a TensorFlow Lite graph"),
    ("*.npz", "a numpy archive"),
)
# First bytes of files that are refused, whatever their names. The ggml magics were little-endian words.
_REFUSED_MAGICS: tuple[tuple[bytes, str], ...] = (
    *(
        (magic, f"a file in the format {magic[::-1].decode()}, from before GGUF")
        for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg")
    ),
    (b"PK\x03\x04", "a zip archive, as PyTorch pickles are"),
    (b"\x80\x02", _PICKLE),
    (b"\x80\x03", _PICKLE),
    (b"\x80\x04", _PICKLE),
    (b"\x80\x05", _PICKLE),
    (b"\x89HDF", "a Keras or TensorFlow checkpoint"),
)


def locate(path: Path) -> tuple[Path, Format]:
    """The file or directory to open for `path`, and its format. Raises SourceError for what zoo does not open."""
    if not os.path.exists(path):
        if path.is_symlink():
            raise SourceError(
                f"{path} is a link to {os.readlink(path)}, which does not exist", remedy="download the model again"
            )
        raise SourceError(f"{path} does not exist", remedy="correct the path, or fetch a model with `zoo pull`")
    if not path.is_dir():
        return path, _file_format(path)
    if (path / "snapshots").is_dir():
        path = _snapshot(path)
    return _directory_format(path)


def is_config_alone(path: Path) -> bool:
    """Whether `path` is a config.json, or a directory that holds one and no weights of any kind."""
    if not path.is_dir():
        return path.name == "config.json" and path.is_file()
    names = [name.lower() for name in os.listdir(path)]
    weights = ("*.safetensors", "*.index.json", "*.gguf", "adapter_config.json", *(name for name, _ in _REFUSED_NAMES))
    found = any(fnmatch(name, pattern) for name in names for pattern in weights)
    return not found and (path / "config.json").is_file()


def _file_format(path: Path) -> Format:
    """The format of a file by its first bytes; its name only serves refusals."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise SourceError(
            f"{path} is neither a file nor a directory", remedy="name a model file or a directory of them"
        )
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise SourceError(f"{path} is empty", remedy="the download did not complete: fetch it again")
    if head.startswith(POINTER):
        raise pointer_error(path)
    if head.startswith(b"GGUF"):
        return "gguf"
    for magic, what in _REFUSED_MAGICS:
        if head.startswith(magic):
            raise SourceError(f"{path} is {what}", remedy=_TO_SAFETENSORS)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER:
        return "safetensors"
    # A damaged file under the right name: its reader says what is wrong with it.
    if path.suffix.lower() == ".gguf":
        return "gguf"
    if path.suffix.lower() == ".safetensors":
        return "safetensors"
    for pattern, what in _REFUSED_NAMES:
        if fnmatch(path.name.lower(), pattern):
            raise SourceError(f"{path} is {what}", remedy=_TO_SAFETENSORS)
    if path.suffix.lower() == ".json":
        raise SourceError(f"{path} is no model file", remedy=f"name the directory {path.parent}")
    raise SourceError(f"{path} begins with {head[:8]!r}: neither GGUF nor safetensors", remedy="name a model file")


def _directory_format(path: Path) -> tuple[Path, Format]:
    names = sorted(os.listdir(path))
    if "adapter_config.json" in names:
        remedy = "merge it into its base model (`merge_and_unload` of peft), save that, and name it"
        raise SourceError(f"{path} holds an adapter (adapter_config.json), not a whole model", remedy=remedy)
    safetensors = [name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))]
    gguf: dict[str, str] = {}
    for name in names:
        if name.lower().endswith(".gguf"):
            gguf.setdefault(shard_set(name), name)
    if safetensors and gguf:
        found = f"{safetensors[0]} and {next(iter(gguf.values()))}"
        raise SourceError(f"{path} holds both safetensors and GGUF: {found}", remedy="name the file to open")
    if len(gguf) > 1:
        found = _some(list(gguf.values()))
        raise SourceError(f"{path} holds {len(gguf)} GGUF models: {found}", remedy="name the file to open")
    if gguf:
        return path / next(iter(gguf.values())), "gguf"
    if safetensors:
        return path, "safetensors"
    for name in names:
        for pattern, what in _REFUSED_NAMES:
            if fnmatch(name.lower(), pattern):
                raise SourceError(f"{path} has no safetensors or GGUF, only {name}: {what}", remedy=_TO_SAFETENSORS)
    found = f"it holds {_some(names)}" if names else "it is empty"
    raise SourceError(
        f"{path} holds no model: {found}", remedy="name a directory with .safetensors files, or a .gguf file"
    )


def _snapshot(path: Path) -> Path:
    """The snapshot that a repository folder of the hub cache points to: refs/main, or the only one."""
    snapshots = sorted(name for name in os.listdir(path / "snapshots") if (path / "snapshots" / name).is_dir())
    reference = path / "refs" / "main"
    if reference.is_file():
        with open(reference, "rb") as file:
            commit = file.read(200).decode("utf-8", "replace").strip()
        if commit in snapshots:
            return path / "snapshots" / commit
        found = f"{reference} names the snapshot {commit[:80]!r}, which is not there"
        raise SourceError(found, remedy=f"download the model again, or name one of {_some(snapshots) or 'its files'}")
    if len(snapshots) == 1:
        return path / "snapshots" / snapshots[0]
    found = f"has no refs/main and {len(snapshots)} snapshots: {_some(snapshots) or 'none'}"
    raise SourceError(f"{path} {found}", remedy="name the snapshot directory to open, or download the model again")


def is_pointer(path: Path) -> bool:
    """Whether this is a Git LFS pointer in place of a file."""
    try:
        # Asked first: opening a pipe would wait for a writer.
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def pointer_error(path: Path) -> SourceError:
    """The error for a Git LFS pointer."""
    remedy = "run `git lfs pull` there, or download the file itself"
    return SourceError(f"{path} is a Git LFS pointer, which stands for a file that was not fetched", remedy=remedy)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
