"""The registry: who is installed, who knows a model, and the calls that reach its owner."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from zoo.errors import PluginError
from zoo.hooks import HOOKS, PROJECT, Detection, ModelPlugin
from zoo.plugin.architecture import ArchitecturePlugin
from zoo.plugin.bound import BoundPlugin
from zoo.plugin.installed import Announced, announced, load, normalised, one_line, refuse_types
from zoo.plugin.known import KNOWN_ARCHITECTURES

if TYPE_CHECKING:
    from zoo.settings import Settings
    from zoo.source import ModelSource


@dataclass(frozen=True, slots=True)
class PluginRow:
    """One plugin as `zoo plugins` shows it. `error` says why it does not work; None: it works.

    `distribution` and `version` are None for an object that a script passed; `architectures` and `formats` are empty
    for wrappers, and for plugins that do not say.
    """

    name: str
    distribution: str | None
    version: str | None
    architectures: tuple[str, ...]
    formats: tuple[str, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """The plugin that runs a model, and what it saw. `version` is None for an object that a script passed."""

    name: str
    distribution: str | None
    version: str | None
    detection: Detection


class PluginManager:
    """All plugins of a process. Built by `discover`, then closed: bound plugins rely on nobody joining later."""

    def __init__(self) -> None:
        """An empty, open registry; `discover` gives one with the installed plugins."""
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(ModelPlugin)
        self._architectures: dict[str, object] = {}
        self._rows: list[PluginRow] = []
        self._left_out: list[Announced] = []
        self._closed = False

    @classmethod
    def discover(cls, settings: Settings, *, extra: Sequence[object] = ()) -> PluginManager:
        """Register the installed plugins that the settings select, then the objects in `extra`, and close the registry.

        An installed plugin that is broken becomes a row with an error. Raises PluginError if ZOO_PLUGINS names a plugin
        that is not installed, and if an object in `extra` is no plugin.
        """
        manager = cls()
        found = list(announced())
        _require_installed(settings.plugins, found)
        for candidate in found:
            if settings.plugins is None or candidate.name in settings.plugins:
                manager._add_installed(candidate)
            else:
                manager._left_out.append(candidate)
        for plugin in extra:
            if not manager._pluggy.is_registered(plugin):  # an installed plugin passed again is still one plugin
                manager.register(plugin)
        manager._closed = True
        return manager

    @property
    def rows(self) -> list[PluginRow]:
        """One row per plugin: installed ones in the order of their names, then those that a script passed."""
        return sorted(self._rows, key=lambda row: (row.distribution is None, row.name))

    def register(self, plugin: object, name: str | None = None) -> None:
        """Add one plugin object. Its name: `name`, else its attribute `name`, else that of its class.

        Raises PluginError for a closed registry, a name that is taken, a class or module, and for an object with a
        misspelt hook, a hook without marker, a hook missing, or hooks and wrappers in one object.
        """
        name = name or _name_of(plugin)
        if self._closed:
            raise PluginError(
                f"plugin {name!r} comes too late: models are being bound to the plugins that were there",
                remedy="install it, or pass plugins=[...] when loading the model",
            )
        self._rows.append(self._register(plugin, name, None, None))

    def detect(self, source: ModelSource, force: str | None = None) -> Owner:
        """Ask every plugin whether it knows the model; the highest confidence wins.

        `force` names the plugin to use: only that one is asked, and it owns the model even if it makes no claim.
        Raises PluginError if none knows the model, two claim it equally, the one that knows it refuses it, `force` is
        not a working plugin, or a plugin fails while it looks.
        """
        if force is not None:
            self._require_working(force)
        names = list(self._architectures) if force is None else [force]
        answers = {name: answer for name in names if (answer := self._ask(name, source)) is not None}
        claims = {name: answer for name, answer in answers.items() if not answer.refused}
        if not claims and answers:
            raise self._refused(source, answers)
        if not claims and force is None:
            raise self._unknown(source)
        if not claims:
            named = source.architectures[0] if source.architectures else "unknown"
            return self._owner(names[0], Detection(named, 1, "claimed by nobody, forced"))
        best = max(answer.confidence for answer in claims.values())
        winners = [name for name, answer in claims.items() if answer.confidence == best]
        if len(winners) > 1:
            raise PluginError(
                f"{source.path} ({_seen(source)}) is claimed by {_and(winners)} with equal confidence {best}",
                remedy=f"choose one: {' or '.join(f'--plugin {name}' for name in winners)}",
            )
        return self._owner(winners[0], claims[winners[0]])

    def published(self) -> dict[str, Mapping[str, Any]]:
        """The content of config.json of the published models that installed plugins describe, by name.

        Raises PluginError where a plugin's table is damaged.
        """
        found: dict[str, Mapping[str, Any]] = {}
        for plugin in self._architectures.values():
            if isinstance(plugin, ArchitecturePlugin):
                found.update(plugin.published())
        return found

    def bind(self, owner: Owner) -> BoundPlugin:
        """The owner's hooks, with the wrappers of all plugins around them.

        Raises PluginError while the registry is open: a plugin that joined later would answer for this model.
        """
        if not self._closed:
            raise PluginError("the plugin registry is still open", remedy="build it with PluginManager.discover")
        callers = {hook: self._caller(hook, owner.name) for hook in HOOKS}
        return BoundPlugin(owner.name, self._architectures[owner.name], callers)

    def _add_installed(self, candidate: Announced) -> None:
        try:
            row = self._register(load(candidate), candidate.name, candidate.distribution, candidate.version)
        except PluginError as error:
            row = PluginRow(candidate.name, candidate.distribution, candidate.version, (), (), str(error))
        self._rows.append(row)

    def _register(self, plugin: object, name: str, distribution: str | None, version: str | None) -> PluginRow:
        refuse_types(plugin, f"plugin {name!r}")
        if isinstance(plugin, ArchitecturePlugin) and plugin.name != name:
            raise PluginError(
                f"entry point {name!r} names a plugin that calls itself {plugin.name!r}", remedy="give both one name"
            )
        taken = next((row for row in self._rows if row.name == name and row.error is None), None)
        if taken is not None:
            raise PluginError(
                f"the name {name!r} is taken by the plugin of {taken.distribution or 'this script'}",
                remedy="rename or remove one of them",
            )
        try:
            self._pluggy.register(plugin, name)
            self._pluggy.check_pending()
            answers = self._check_hooks(plugin, name)
            architectures, formats = _strings(plugin, "architectures"), _strings(plugin, "formats")
        except Exception as error:  # a plugin's properties may raise anything
            if self._pluggy.has_plugin(name):
                self._pluggy.unregister(name=name)
            if isinstance(error, PluginError):
                raise
            raise PluginError(
                f"plugin {name!r}: {one_line(error)}", remedy=f"the hooks are {', '.join(HOOKS)}: see zoo.hooks"
            ) from error
        if answers:
            self._architectures[name] = plugin
        return PluginRow(name, distribution, version, architectures, formats)

    def _check_hooks(self, plugin: object, name: str) -> bool:
        """Whether the object answers hooks (True) or only wraps them (False)."""
        answers: set[str] = set()
        wrappers: set[str] = set()
        for attribute in dir(plugin):
            options = self._pluggy.parse_hookimpl_opts(plugin, attribute)
            if options is not None:
                kind = wrappers if options["wrapper"] or options["hookwrapper"] else answers
                kind.add(options["specname"] or attribute)
            elif attribute in HOOKS and callable(inspect.getattr_static(plugin, attribute, None)):
                raise PluginError(
                    f"plugin {name!r}: {attribute} has the name of a hook but no marker",
                    remedy="put @hookimpl on it, or rename it",
                )
        if answers and wrappers:
            raise PluginError(
                f"plugin {name!r} answers {_and(sorted(answers))} and wraps {_and(sorted(wrappers))}",
                remedy="put answers and wrappers into two objects, each with its entry point",
            )
        if not answers and not wrappers:
            raise PluginError(
                f"plugin {name!r} has no hooks: it is a {type(plugin).__name__}",
                remedy="name an ArchitecturePlugin, or an object with methods marked @hookimpl",
            )
        missing = [hook for hook in HOOKS if hook not in answers]
        if answers and missing:
            raise PluginError(
                f"plugin {name!r} answers {_and(sorted(answers))} but not {_and(missing)}",
                remedy="answer all six hooks, or mark wrappers with @hookimpl(wrapper=True)",
            )
        try:
            hash(plugin)
        except TypeError as error:
            raise PluginError(
                f"plugin {name!r} is a {type(plugin).__name__}, which cannot be hashed",
                remedy="let it compare by identity (eq=False for a dataclass)",
            ) from error
        return bool(answers)

    def _caller(self, hook: str, owner: str) -> pluggy.HookCaller:
        others = [plugin for name, plugin in self._architectures.items() if name != owner]
        return self._pluggy.subset_hook_caller(hook, others)

    def _ask(self, name: str, source: ModelSource) -> Detection | None:
        """One plugin's answer. Asked one by one, so that each answer and each failure has a name."""
        try:
            answers = self._caller("detect", name)(source=source)
        except Exception as error:
            raise PluginError(
                f"plugin {name!r} failed while looking at {source.path}: {one_line(error)}",
                remedy="remove it, leave it out with ZOO_PLUGINS, or choose another with --plugin",
            ) from error
        if not isinstance(answers, list) or not all(isinstance(answer, Detection) for answer in answers):
            raise PluginError(
                f"plugin {name!r}: detect returned {answers!r}",
                remedy="return a Detection or None; a wrapper of detect returns the list that it received",
            )
        return max(answers, key=lambda answer: answer.confidence, default=None)

    def _owner(self, name: str, detection: Detection) -> Owner:
        row = next(row for row in self._rows if row.name == name and row.error is None)
        return Owner(name, row.distribution, row.version, detection)

    def _require_working(self, name: str) -> None:
        if name in self._architectures:
            return
        broken = next((row for row in self._rows if row.name == name and row.error is not None), None)
        if broken is not None:
            raise PluginError(f"plugin {name!r} is broken: {broken.error}")
        if any(row.name == name for row in self._rows):
            raise PluginError(f"plugin {name!r} wraps models of other plugins and runs none itself")
        raise PluginError(
            f"there is no plugin {name!r}", remedy=f"those that work: {', '.join(self._architectures) or 'none'}"
        )

    def _refused(self, source: ModelSource, answers: Mapping[str, Detection]) -> PluginError:
        name, answer = max(answers.items(), key=lambda item: item[1].confidence)
        what = f"{source.path} ({_seen(source)})"
        if answer.instead is None:
            return PluginError(f"plugin {name!r} recognises {what} but does not run it: {answer.refuse}")
        return PluginError(
            f"plugin {name!r} recognises {what} but {answer.instead} runs it", remedy=self._get(answer.instead)
        )

    def _unknown(self, source: ModelSource) -> PluginError:
        """Nobody claims the model: what was seen, who would know it, and which plugins could not be asked."""
        names = source.architectures
        distribution = next((KNOWN_ARCHITECTURES[name] for name in names if name in KNOWN_ARCHITECTURES), None)
        if distribution is not None:
            remedy = self._get(distribution)
        else:
            remedy = "install a plugin for it, or name one that runs the same architecture with --plugin"
        if not self._rows and distribution is None:
            remedy = "no plugin is installed: for Llama models, pip install zoo-llama"
        broken = [f"{row.name} ({row.error})" for row in self._rows if row.error is not None]
        could_not = f"; broken, so not asked: {', '.join(broken)}" if broken else ""
        return PluginError(f"no plugin knows {source.path} ({_seen(source)}){could_not}", remedy=remedy)

    def _get(self, distribution: str) -> str:
        """How to come by a distribution's plugin, given what is installed."""
        wanted = normalised(distribution)
        for left_out in self._left_out:
            if normalised(left_out.distribution) == wanted:
                return f"{distribution} is installed, but ZOO_PLUGINS leaves it out: add {left_out.name}"
        for row in self._rows:
            if row.distribution is None or normalised(row.distribution) != wanted:
                continue
            if row.error is not None:
                return f"{distribution} is installed but broken: pip install --force-reinstall {distribution}"
            return f"{distribution} {row.version} is installed and does not claim it: pip install -U {distribution}"
        return f"pip install {distribution}"


def _require_installed(selected: Sequence[str] | None, found: Sequence[Announced]) -> None:
    installed = sorted({candidate.name for candidate in found})
    unknown = [name for name in selected or () if name not in installed]
    if unknown:
        raise PluginError(
            f"ZOO_PLUGINS names {_and(unknown)}, which no installed distribution provides",
            remedy=f"installed: {', '.join(installed) or 'none'}",
        )


def _name_of(plugin: object) -> str:
    name = getattr(plugin, "name", None)
    return name if isinstance(name, str) and name else type(plugin).__name__


def _strings(plugin: object, attribute: str) -> tuple[str, ...]:
    value = getattr(plugin, attribute, ())
    if not isinstance(value, tuple | list) or not all(isinstance(item, str) for item in value):
        raise PluginError(
            f"plugin {_name_of(plugin)!r}: {attribute} is {value!r}",
            remedy="make it a tuple of strings, or leave it out",
        )
    return tuple(value)


def _seen(source: ModelSource) -> str:
    names = ", ".join(source.architectures) or "no architecture named"
    return f"{names}, {source.format}"


def _and(names: Sequence[str]) -> str:
    return " and ".join(repr(name) for name in names)
