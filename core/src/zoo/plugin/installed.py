"""Plugins that distributions announce through entry points, loaded one by one so that a broken one harms no other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from zoo.errors import PluginError
from zoo.hooks import PROJECT

_GROUP = re.compile(rf"^\s*\[\s*{PROJECT}\s*\]\s*$", re.MULTILINE)
_NAME = r"[A-Za-z_]\w*"
_OBJECT = re.compile(rf"{_NAME}(\.{_NAME})*\s*:\s*{_NAME}(\.{_NAME})*")


@dataclass(frozen=True, slots=True)
class Announced:
    """One entry point: the plugin's name, its "module:object" and the distribution it comes from.

    `entry` is None, and `error` says why, where a distribution announces plugins in a form that cannot be read.
    """

    name: str
    distribution: str
    version: str
    entry: metadata.EntryPoint | None
    error: str | None = None


def announced() -> Iterator[Announced]:
    """Every entry point of the group, in the order of `sys.path`; of a distribution found twice, the first counts."""
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except (OSError, UnicodeDecodeError) as error:
            name, version = _identity(distribution)
            yield Announced(name, name, version, None, f"entry_points.txt cannot be read: {one_line(error)}")
            continue
        if not _GROUP.search(text):
            continue
        name, version = _identity(distribution)
        if normalised(name) in seen:
            continue
        seen.add(normalised(name))
        try:
            entries = list(distribution.entry_points.select(group=PROJECT))
        except Exception as error:  # whatever the parser makes of a damaged file
            yield Announced(name, name, version, None, f"entry_points.txt cannot be read: {one_line(error)}")
            continue
        for entry in entries:
            yield Announced(entry.name, name, version, entry)


def load(found: Announced) -> object:
    """Import what an entry point names.

    Raises PluginError if it names a module, a class or nothing that can be imported, whatever the import raises.
    """
    if found.entry is None:
        raise PluginError(found.error or "", remedy=f"reinstall {found.distribution}")
    value = found.entry.value
    if not _OBJECT.fullmatch(value):
        line = f'{found.name} = "{value.split(":")[0].strip()}:plugin"'
        raise PluginError(
            f"entry point {found.name!r} of {found.distribution} names {value!r}, not an object",
            remedy=f"write {line} under [project.entry-points.{PROJECT}]",
        )
    try:
        plugin = found.entry.load()
    except (Exception, SystemExit) as error:  # an import may raise anything, and a script may exit
        raise PluginError(
            f"entry point {found.name!r} of {found.distribution}: {value!r} cannot be imported: {one_line(error)}",
            remedy=f"reinstall or remove {found.distribution}",
        ) from error
    refuse_types(plugin, f"entry point {found.name!r} of {found.distribution} names {value!r}, which")
    return plugin


def refuse_types(plugin: object, who: str) -> None:
    """Raise PluginError for a class or a module: hooks belong to an object. `who` starts the sentence."""
    kind = "class" if inspect.isclass(plugin) else "module" if inspect.ismodule(plugin) else None
    if kind is not None:
        remedy = "an instance of it" if kind == "class" else "an object in it"
        raise PluginError(f"{who} is a {kind}, not a plugin object", remedy=f"name {remedy}")


def one_line(error: BaseException) -> str:
    """The type and the message of an error, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def normalised(distribution: str) -> str:
    """A distribution's name as package indexes compare it: zoo_llama and Zoo.Llama are zoo-llama."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _identity(distribution: metadata.Distribution) -> tuple[str, str]:
    """Name and version; "unknown" where the installed metadata is damaged, which must not hide the plugin."""
    try:
        fields = distribution.metadata
        return fields["Name"] or "unknown", fields["Version"] or "unknown"
    except Exception:
        return "unknown", "unknown"
