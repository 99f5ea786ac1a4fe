"""What was pulled: one small JSON file per model under `<cache>/models/`, and the lock that guards writing it.

<cache>/models/smollm2/zoo-model.json                        beside the model itself
<cache>/models/ORG--REPO--FILE/zoo-model.json                points into the Hugging Face cache
<cache>/locks/                                               one lock file per name
<cache>/tmp/                                                 pulls under way
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from zoo.errors import HubError
from zoo.hub.report import Reporter, human_size

if TYPE_CHECKING:
    from zoo.settings import Settings

RECORD_NAME = "zoo-model.json"
RECORD_VERSION = 1

Format = Literal["gguf", "safetensors"]


@dataclass(frozen=True, slots=True)
class PulledFile:
    """One file of a pulled model: where it lies, its bytes, and its sha256 in hex where somebody published one."""

    path: Path
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A model that was pulled.

    `name` is what a user types, `path` what is opened (a GGUF file, its first shard, or a directory), `directory` the
    folder of the record in zoo's cache, `source` where the bytes came from, `date` the time of the pull in ISO 8601.
    """

    name: str
    source: str
    format: Format
    path: Path
    files: tuple[PulledFile, ...]
    licence: str
    date: str
    directory: Path

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def fault(self) -> str | None:
        """Why the model cannot be used (a file is gone or has another size), or None. Reads no content."""
        for file in self.files:
            try:
                found = file.path.stat().st_size
            except OSError as error:
                return f"{file.path} cannot be read ({error.strerror})"
            if found != file.size:
                return f"{file.path} has {found} bytes where {file.size} were pulled"
        return None


@dataclass(frozen=True, slots=True)
class DamagedRecord:
    """A record that cannot be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Records:
    """All records of a cache, by name."""

    models: tuple[PulledModel, ...]
    damaged: tuple[DamagedRecord, ...]


def model_directory(settings: Settings, key: str) -> Path:
    """The folder of one record. `key` is a single path component."""
    return settings.cache_dir / "models" / key


def today() -> str:
    """The time of now for `PulledModel.date`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_record(model: PulledModel) -> None:
    """Write the record of `model` into its directory, in one step. Raises OSError."""
    document = {
        "version": RECORD_VERSION,
        "name": model.name,
        "source": model.source,
        "format": model.format,
        "licence": model.licence,
        "date": model.date,
        "path": _relative(model.path, model.directory),
        "files": [
            {"path": _relative(file.path, model.directory), "size": file.size, "sha256": file.sha256}
            for file in model.files
        ],
    }
    model.directory.mkdir(parents=True, exist_ok=True)
    partial = model.directory / f"{RECORD_NAME}.part"
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, model.directory / RECORD_NAME)


def load_records(settings: Settings) -> Records:
    """Read every record of the cache; a damaged one is reported and hides no other."""
    models: list[PulledModel] = []
    damaged: list[DamagedRecord] = []
    for path in sorted((settings.cache_dir / "models").glob(f"*/{RECORD_NAME}")):
        try:
            models.append(_parse(json.loads(path.read_text(encoding="utf-8")), path.parent))
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged.append(DamagedRecord(path, f"{type(error).__name__}: {error}"))
    return Records(tuple(sorted(models, key=lambda model: model.name)), tuple(damaged))


def remove(name: str, settings: Settings) -> PulledModel:
    """Delete the record called `name` and what lies beside it in zoo's cache; returns what was removed.

    Files in the Hugging Face cache stay: other tools share them. Raises HubError when nothing has that name.
    """
    models = load_records(settings).models
    model = next((model for model in models if model.name == name), None)
    if model is None:
        known = ", ".join(model.name for model in models) or "none"
        raise HubError(
            f"no pulled model is called {name!r} (pulled: {known})", remedy="see the exact names with `zoo models`"
        )
    try:
        # The folder comes from the listing, never from the record's text, so nothing outside the cache can be named.
        shutil.rmtree(model.directory)
    except OSError as error:
        raise HubError(
            f"{model.directory} cannot be deleted: {error.strerror}", remedy="check its owner and permissions"
        ) from error
    return model


@contextmanager
def pull_lock(settings: Settings, key: str, reporter: Reporter) -> Iterator[None]:
    """Hold the lock of one name: a second pull of it waits, and says so. Released by the system if the holder dies."""
    from filelock import FileLock, Timeout

    path = settings.cache_dir / "locks" / f"{key}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            reporter.say(f"another zoo is pulling {key}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise cache_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


def cache_error(path: Path, error: OSError) -> HubError:
    """The readable form of an OSError about the cache at `path`."""
    return HubError(
        f"{error.filename or path} cannot be written: {error.strerror or error}",
        remedy="free some space or check its owner and permissions; ZOO_CACHE names another cache",
    )


def require_space(directory: Path, needed: int, what: str, variable: str) -> None:
    """Raise HubError unless the disk of `directory` (which may not exist yet) has `needed` bytes free.

    `variable` is the environment variable that moves the directory to another disk.
    """
    existing = directory.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise HubError(
            f"{what} needs {human_size(needed)} on the disk of {directory}, and {human_size(free)} are free",
            remedy=f"free some space, or set {variable} to a directory on another disk",
        )


def _relative(path: Path, directory: Path) -> str:
    """A path below `directory` is written relative to it, so that a cache can be moved."""
    return path.relative_to(directory).as_posix() if path.is_relative_to(directory) else str(path)


def _parse(document: Any, directory: Path) -> PulledModel:
    """The model of a record. Raises KeyError, TypeError or ValueError on anything unexpected."""
    if document["version"] != RECORD_VERSION:
        raise ValueError(f"record version {document['version']}, this zoo reads {RECORD_VERSION}")
    if document["format"] not in ("gguf", "safetensors"):
        raise ValueError(f"format {document['format']!r} is neither gguf nor safetensors")
    files = tuple(
        PulledFile(
            directory / _text(file, "path"),
            int(file["size"]),
            None if file["sha256"] is None else _text(file, "sha256"),
        )
        for file in document["files"]
    )
    return PulledModel(
        name=_text(document, "name"),
        source=_text(document, "source"),
        format=cast(Format, document["format"]),
        path=directory / _text(document, "path"),
        files=files,
        licence=_text(document, "licence"),
        date=_text(document, "date"),
        directory=directory,
    )


def _text(document: Any, key: str) -> str:
    value = document[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {type(value).__name__}, not text")
    return value
