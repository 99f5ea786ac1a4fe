"""Name maps: which tensor of a file goes where in a model. Data, not code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from zoo.errors import PluginError
from zoo.quant.tensor import QuantTensor


@dataclass(frozen=True, slots=True)
class Rows:
    """A fused tensor: its rows belong to these targets, in order, each as many as the target has.

    `dim` 1: each matrix of a stack is fused (experts, or heads where the targets are stacks and the tensor is not).
    """

    targets: tuple[str, ...]
    dim: int = 0

    def __init__(self, *targets: str, dim: int = 0) -> None:
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "dim", dim)


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert's part of a target that holds all of them; the pattern's second `*` is the expert's number."""

    target: str


@dataclass(frozen=True, slots=True)
class Apply:
    """A tensor that must be changed before it fits the target, by a function that unpacks nothing large."""

    function: Callable[[Tensor | QuantTensor], Tensor | QuantTensor]
    target: str


Target = str | Rows | Expert | Apply | None

WRAPPED: Mapping[str, str | None] = MappingProxyType(
    {
        "language_model.": "",
        "model.language_model.": "model.",
        **{
            f"{root}{part}.": None
            for root in ("", "model.")
            for part in ("vision_tower", "multi_modal_projector", "audio_tower", "embed_vision", "embed_audio")
        },
    }
)
"""Prefixes of a text model inside a model of images and sound (`...ForConditionalGeneration`), by transformers' names
of version 4 and 5. What sees and hears is left aside.
"""


class NameMap:
    """Patterns of tensor names to targets in the model.

    A pattern is a name in which `*` stands for a number; a target repeats the first number as `*`. None: known and not
    needed. With `identity`, a name that no pattern matches is its own target. Earlier patterns win.
    `prefixes` are replaced before patterns are looked at; None: everything below is known and not needed (`WRAPPED` for
    text models inside of others). The longest prefix wins.
    Raises PluginError for an Expert whose pattern has no second `*`.
    """

    def __init__(
        self,
        patterns: Mapping[str, Target],
        *,
        identity: bool = False,
        prefixes: Mapping[str, str | None] = MappingProxyType({}),
    ) -> None:
        self.identity = identity
        self._prefixes = sorted(prefixes.items(), key=lambda item: -len(item[0]))
        for pattern, target in patterns.items():
            if isinstance(target, Expert) and pattern.count("*") < 2:
                raise PluginError(
                    f"name map: {pattern} goes to an Expert but names no expert",
                    remedy="the second * of the pattern is the expert's number",
                )
        self._patterns = [(_compile(pattern), target) for pattern, target in patterns.items()]

    def resolve(self, name: str) -> tuple[Target, int | None]:
        """The target of a tensor, numbers filled in, and the expert it belongs to if its target is an Expert.

        Raises KeyError where no pattern matches and the map is not an identity.
        """
        for prefix, replacement in self._prefixes:
            if name.startswith(prefix):
                if replacement is None:
                    return None, None
                name = replacement + name.removeprefix(prefix)
                break
        for pattern, target in self._patterns:
            if match := pattern.fullmatch(name):
                return _fill(target, match.groups())
        if self.identity:
            return name, None
        raise KeyError(name)


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(r"([0-9]{1,9})".join(re.escape(part) for part in pattern.split("*")))


def _fill(target: Target, numbers: tuple[str, ...]) -> tuple[Target, int | None]:
    def fill(text: str) -> str:
        return text.replace("*", numbers[0], 1) if numbers else text

    if isinstance(target, str):
        return fill(target), None
    if isinstance(target, Rows):
        return Rows(*map(fill, target.targets), dim=target.dim), None
    if isinstance(target, Expert):
        return Expert(fill(target.target)), int(numbers[1])
    if isinstance(target, Apply):
        return Apply(target.function, fill(target.target)), None
    return None, None
