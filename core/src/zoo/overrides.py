"""What a user sets by hand (`--set`), put into config.json or GGUF metadata.

transformers 5 moved `rope_theta` and `rope_scaling` into `rope_parameters`. Here either spelling reaches what the file
has, so that nothing that is set is without effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import SourceError, UsageError

_ROPE = ("rope_parameters", "rope_scaling")
_MOVED = ("rope_theta", "partial_rotary_factor")


def override_metadata(metadata: Mapping[str, Any], overrides: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    """Metadata with `overrides`, and the keys that were not there. A leading dot stands for the architecture.

    Raises UsageError for a key without a dot, which no GGUF has.
    """
    changed = dict(metadata)
    architecture = overrides.get("general.architecture", metadata.get("general.architecture"))
    added = []
    for key, value in overrides.items():
        if "." not in key:
            raise UsageError(f"{key!r} is no key of a GGUF", remedy=f"write .{key} for {architecture}.{key}")
        key = f"{architecture}{key}" if key.startswith(".") else key
        if key not in changed:
            added.append(key)
        changed[key] = value
    return changed, added


def override_config(config: dict[str, Any], overrides: Mapping[str, object], file: str) -> list[str]:
    """Put `overrides` into `config`, dots leading into nested objects; returns the keys that were not there.

    Raises UsageError for a key that fits nowhere.
    """
    added = []
    for key, value in overrides.items():
        spelt, meant = _rope_override(config, key, value, file)
        if _set(config, spelt, meant, file):
            added.append(spelt)
    return added


def _set(config: dict[str, Any], key: str, value: object, file: str) -> bool:
    """Whether the key is new."""
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise UsageError(f"{key!r} cannot be set: {parent} is {str(node)[:80]} in {file}", remedy=f"set {parent}")
    if not all((*parents, last)):
        raise UsageError(f"{key!r} is no key of {file}", remedy="write key=value or outer.inner=value")
    new = last not in node
    node[last] = value
    return new


def merge_rope(config: dict[str, Any], path: Path) -> None:
    """Where a file has both objects of rotary parameters, as after adding `rope_scaling` by hand, make them one.

    `rope_scaling` wins, as in transformers; what only `rope_parameters` has, such as theta, is kept. Raises SourceError
    where `rope_parameters` differ by kind of layer.
    """
    newer, older = (config.get(name) for name in _ROPE)
    if not (older and newer and isinstance(older, dict) and isinstance(newer, dict)):
        return
    if _per_kind(newer):
        raise SourceError(
            f"{path} has rope_parameters for each kind of layer, and rope_scaling for all", remedy="remove one of them"
        )
    config["rope_parameters"] = {**newer, **_typed(older)}
    del config["rope_scaling"]


def _per_kind(rope: Mapping[str, Any]) -> bool:
    return any(isinstance(value, dict) for value in rope.values())


def _typed(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters whose type is called `rope_type`."""
    kind = rope.get("rope_type", rope.get("type"))
    return dict(rope) if kind is None else {**rope, "rope_type": kind}


def _rope_override(config: Mapping[str, Any], key: str, value: object, file: str) -> tuple[str, object]:
    """The key and value that `key=value` means where the file spells rotary parameters otherwise."""
    head, dot, rest = key.partition(".")
    name = next((name for name in _ROPE if config.get(name)), None)
    if name is None or not isinstance(found := config[name], dict) or (dot and not rest):
        return key, value
    moved = key in _MOVED and (key in found or _per_kind(found))
    if not moved and head not in _ROPE:
        return key, value
    if (moved or head != name) and _per_kind(found):
        raise UsageError(
            f"{key!r} cannot be set: {file} has {name} for each kind of layer",
            remedy=f"name one: {name}.{next(iter(found))}.{key if moved else rest or 'KEY'}=VALUE",
        )
    if moved:
        return f"{name}.{key}", value
    if not rest:
        whole = {"rope_type": "default"} if value is None else value
        return name, {**found, **_typed(whole)} if head != name and isinstance(whole, dict) else value
    return f"{name}.{'rope_type' if rest == 'type' and 'rope_type' in found else rest}", value
