"""What the environment says. Nothing else in zoo reads a ZOO_* variable."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zoo.errors import UsageError

_SWITCH = {"0": False, "false": False, "no": False, "off": False} | dict.fromkeys(("1", "true", "yes", "on"), True)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one process. A variable that is set but empty counts as not set.

    `cache_dir` (ZOO_CACHE) holds pulled models. `plugins` (ZOO_PLUGINS, names with commas between) are the only plugins
    to load; None: all installed. `cpu_isa` (ZOO_CPU_ISA) names the instruction set that CPU kernels must use; None: the
    best there is. `debug` (ZOO_DEBUG) shows tracebacks. `cpu_repack` (ZOO_CPU_REPACK) lets weights be packed anew for
    CPU kernels. `api_key` (ZOO_API_KEY) is what `zoo serve` asks clients for.
    """

    cache_dir: Path
    plugins: tuple[str, ...] | None = None
    cpu_isa: str | None = None
    debug: bool = False
    cpu_repack: bool = True
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the variables. Raises UsageError for a value that means nothing."""
        return cls(
            cache_dir=_cache_dir(environ),
            plugins=_names(environ.get("ZOO_PLUGINS", "")),
            cpu_isa=environ.get("ZOO_CPU_ISA", "").strip() or None,
            cpu_repack=_switch(environ, "ZOO_CPU_REPACK", "on"),
            debug=_switch(environ, "ZOO_DEBUG", "off"),
            api_key=environ.get("ZOO_API_KEY") or None,
        )


def _switch(environ: Mapping[str, str], name: str, default: str) -> bool:
    value = environ.get(name, "").strip().lower()
    if (value or default) not in _SWITCH:
        raise UsageError(f"{name} is {value!r}", remedy="set it to 1 or 0")
    return _SWITCH[value or default]


def _names(value: str) -> tuple[str, ...] | None:
    if not value.strip():
        return None
    names = tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise UsageError(
            f"ZOO_PLUGINS is {value!r}, with an empty name in it", remedy="write names with one comma between"
        )
    return names


def _cache_dir(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME") or os.path.expanduser("~")
    if named := environ.get("ZOO_CACHE"):
        tail = named.removeprefix("~/")
        return Path(os.path.abspath(named if tail == named else os.path.join(home, tail)))
    if not os.path.isabs(home):
        raise UsageError("the home directory is not known", remedy="set ZOO_CACHE to a directory for models")
    if sys.platform == "darwin":
        return Path(home, "Library", "Caches", "zoo")
    # The XDG base directory specification: a relative path is invalid and to be ignored.
    xdg = environ.get("XDG_CACHE_HOME", "")
    return Path(xdg if os.path.isabs(xdg) else os.path.join(home, ".cache"), "zoo")
