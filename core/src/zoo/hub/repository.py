"""Pull of a hub repository through huggingface-hub: list, choose, check the space, download, verify, register.

The files go into the Hugging Face cache, where other tools find them. A dropped connection is resumed by
huggingface-hub within a run; after an interrupted run the files that were complete are not fetched again.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import HubError, ZooError
from zoo.formats import strictjson
from zoo.hub.choose import Choice, Reference, RemoteFile, choose
from zoo.hub.records import PulledFile, PulledModel, cache_error, model_directory, require_space, today, write_record
from zoo.hub.report import Reporter, human_size, printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

    from zoo.settings import Settings

TIMEOUT = 30.0  # seconds for the listing
CHUNK = 1 << 20  # bytes hashed at a time
MAX_INDEX_BYTES = 100_000_000  # an index has about 100 bytes per tensor; the largest known have 100k tensors
REVISION = "main"


@dataclass(frozen=True, slots=True)
class _Listing:
    """What the hub says of a repository: its commit, its licence, its files."""

    commit: str
    licence: str
    files: tuple[RemoteFile, ...]


class _Repository:
    """One repository at one commit, as seen through huggingface-hub."""

    def __init__(self, repo: str, endpoint: str | None, hub_cache: Path | None) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.constants import HF_HUB_CACHE

        self.repo = repo
        self.api: HfApi = HfApi(endpoint=endpoint)
        self.cache = Path(HF_HUB_CACHE) if hub_cache is None else hub_cache
        with self._readable():
            info = self.api.model_info(repo, revision=REVISION, files_metadata=True, timeout=TIMEOUT)
        self.listing = self._parse(info)

    def cached(self, file: RemoteFile) -> Path | None:
        """Where `file` lies in the Hugging Face cache, if it is there with the right size."""
        path = self._pointer(file)
        return path if path is not None and path.stat().st_size == file.size else None

    def fetch(self, file: RemoteFile, reporter: Reporter) -> Path:
        """Download `file`, unless the cache has it, and check its size and its sha256. Returns its path."""
        if path := self.cached(file):
            return path
        if damaged := self._pointer(file):
            _discard(damaged)
        with self._readable():
            # By branch and not by commit, so that the cache learns what "main" is and other tools find it offline.
            path = Path(self.api.hf_hub_download(self.repo, file.name, revision=REVISION, cache_dir=self.cache))
        if path.parents[file.name.count("/")].name != self.listing.commit:
            raise HubError(f"{self.repo} was changed while it was pulled", remedy="run the pull again")
        if path.stat().st_size != file.size or not _has_sha256(path, file, reporter):
            # huggingface-hub checks the size alone, and would take the wrong bytes for right ones the next time.
            _discard(path)
            raise HubError(
                f"{file.name} of {self.repo} came with other bytes than the hub announces ({file.size} bytes, "
                f"sha256 {file.sha256}); it was deleted",
                remedy="run the pull again; if it repeats, the hub or a proxy on the way is broken",
            )
        return path

    def read_index(self, file: RemoteFile, reporter: Reporter) -> Mapping[str, str]:
        """The weight_map of an index file, downloaded first."""
        wrong = f"{file.name} of {self.repo}"
        if file.size > MAX_INDEX_BYTES:
            raise HubError(f"{wrong} has {human_size(file.size)}", remedy="do not use this repository")
        try:
            content = strictjson.parse(self.fetch(file, reporter).read_bytes())
        except ValueError as error:
            raise HubError(f"{wrong} is no valid JSON: {error}", remedy="tell the owner of the repository") from error
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise HubError(f"{wrong} has no map 'weight_map' of file names", remedy="tell the owner of the repository")
        return names

    def _pointer(self, file: RemoteFile) -> Path | None:
        """The name of `file` in the snapshot of this commit, if there is one with content."""
        from huggingface_hub import try_to_load_from_cache

        with self._readable():
            found = try_to_load_from_cache(self.repo, file.name, cache_dir=self.cache, revision=self.listing.commit)
        return Path(found) if isinstance(found, str) else None

    def _parse(self, info: ModelInfo) -> _Listing:
        """Check what the hub sent; a listing is from a stranger."""
        wrong = f"the hub at {self.api.endpoint} sent an incomplete listing of {self.repo}"
        if info.sha is None or re.fullmatch("[0-9a-f]{40}", info.sha) is None or info.siblings is None:
            raise HubError(f"{wrong}: no commit or no files", remedy="check HF_ENDPOINT")
        files = []
        for sibling in info.siblings:
            if not isinstance(sibling.size, int) or sibling.size < 0:
                raise HubError(f"{wrong}: no size for {printable(sibling.rfilename)!r}", remedy="check HF_ENDPOINT")
            sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
            files.append(RemoteFile(sibling.rfilename, sibling.size, sha256))
        card = info.card_data
        licence = getattr(card, "license_name", None) or getattr(card, "license", None) or "not stated"
        return _Listing(info.sha, printable(licence), tuple(files))

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn whatever huggingface-hub raises into a HubError; its HTTP library differs between versions."""
        try:
            yield
        except ZooError:
            raise
        except Exception as error:
            raise _explain(self.repo, self.api.endpoint, self.cache, error) from error


def pull_repository(
    reference: Reference, settings: Settings, reporter: Reporter, *, endpoint: str | None, hub_cache: Path | None
) -> PulledModel:
    """Fetch the model that `reference` names and register it. The caller holds the lock of the repository.

    `endpoint` and `hub_cache` are None for those of huggingface-hub (HF_ENDPOINT, HF_HUB_CACHE, HF_HOME). Raises
    HubError: unknown, gated or unreachable repository, nothing that fits, no space, wrong bytes.
    """
    repository = _Repository(reference.repo, endpoint, hub_cache)
    listing = repository.listing
    choice = choose(reference, listing.files, lambda file: repository.read_index(file, reporter))
    if choice.note:
        reporter.say(choice.note)
    missing = [file for file in choice.files if repository.cached(file) is None]
    to_download = sum(file.size for file in missing)
    reporter.say(
        f"{choice.reference}: {len(choice.files)} files, {human_size(choice.size)}, "
        f"{human_size(to_download)} to download, licence {listing.licence}"
    )
    require_space(repository.cache, to_download, f"pulling {choice.reference}", "HF_HOME")
    paths = []
    for file in choice.files:
        if file in missing:
            reporter.say(f"[{missing.index(file) + 1}/{len(missing)}] {file.name} ({human_size(file.size)})")
        paths.append(repository.fetch(file, reporter))
    model = _model(choice, paths, listing, settings)
    try:
        write_record(model)
    except OSError as error:
        raise cache_error(settings.cache_dir, error) from error
    return model


def repository_key(repo: str) -> str:
    """The name of a repository as one path component."""
    return repo.replace("/", "--")


def _model(choice: Choice, paths: Sequence[Path], listing: _Listing, settings: Settings) -> PulledModel:
    """The record of what was fetched. Paths stay those of the snapshot: the blobs behind them have no names."""
    key = repository_key(choice.reference.repo)
    if choice.format == "gguf":
        # The first file is unique to the model where its quant may not be.
        key += "--" + choice.files[0].name.removesuffix(".gguf").replace("/", "--")
    return PulledModel(
        name=str(choice.reference),
        source=f"hub {choice.reference.repo}@{listing.commit}",
        format=choice.format,
        path=paths[0] if choice.format == "gguf" else paths[0].parent,
        files=tuple(PulledFile(path, file.size, file.sha256) for path, file in zip(paths, choice.files, strict=True)),
        licence=listing.licence,
        date=today(),
        directory=model_directory(settings, key),
    )


def _discard(path: Path) -> None:
    """Delete a file of the Hugging Face cache: the content and the name that links to it."""
    path.resolve().unlink()
    path.unlink(missing_ok=True)


def _has_sha256(path: Path, file: RemoteFile, reporter: Reporter) -> bool:
    """Whether `path` has the sha256 that the hub announced; True where it announced none (small files)."""
    if file.sha256 is None:
        return True
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            reporter.progress(f"checking {file.name}", stream.tell(), file.size)
    return digest.hexdigest() == file.sha256


def _explain(repo: str, endpoint: str, cache: Path, error: Exception) -> HubError:
    """The readable form of an exception of huggingface-hub or of the HTTP library below it."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain):
        return HubError(
            f"{repo} is not in the cache and the network is switched off (HF_HUB_OFFLINE)",
            remedy="unset HF_HUB_OFFLINE and run the pull again",
        )
    if isinstance(error, GatedRepoError):
        return HubError(
            f"{repo} is gated: its owner gives access to people who accepted the terms",
            remedy=f"accept them at {endpoint}/{repo}, log in with `hf auth login` (or set HF_TOKEN), and pull again",
        )
    status = next((link.response.status_code for link in chain if isinstance(link, HfHubHTTPError)), None)
    if status in (401, 404):
        return HubError(
            f"{endpoint} has no repository or file {repo}, or shows it only to its owner (HTTP {status})",
            remedy="check the spelling of ORG/REPO; for a private one log in with `hf auth login` or set HF_TOKEN",
        )
    if status is not None:
        return HubError(
            f"{endpoint} answered HTTP {status} for {repo}: {printable(error)}", remedy="try again in a while"
        )
    if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain):
        return HubError(f"the disk of {cache} is full", remedy="free some space, or set HF_HOME to another disk")
    # Which HTTP library is below depends on the version; its base classes are those of the hub's own HTTP error.
    http_errors = tuple(base for base in HfHubHTTPError.__mro__ if base not in OSError.__mro__)
    if isinstance(error, (LocalEntryNotFoundError, ConnectionError, TimeoutError, *http_errors)):
        return HubError(
            f"{endpoint} cannot be reached or the connection broke while pulling {repo}: {printable(chain[-1])}",
            remedy="check the network and HF_ENDPOINT, then run the pull again",
        )
    return HubError(
        f"{repo} could not be pulled: {type(error).__name__}: {printable(error)}",
        remedy="run with --debug for the traceback",
    )
