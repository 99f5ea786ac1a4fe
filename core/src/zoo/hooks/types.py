"""What hooks exchange. Imports no torch: detection and `zoo plugins` must stay cheap.

Dims: T packed tokens, L rows of logits, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Protocol

from zoo.errors import PluginError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.batch import Batch
    from zoo.cache import CacheSpec, KVCache

MAX_CONTEXT = 1 << 40
MAX_THREADS = 1024
"""Beyond it a system may refuse to start them, which ends the process and not with an exception."""

HOOK_API_VERSION = 1
"""Grows with each change of the hooks; changes add optional arguments only."""


@dataclass(frozen=True, slots=True)
class Detection:
    """A plugin's answer to `detect`: it knows this model.

    `architecture` is the name that was recognised, as the file spells it. `confidence` is 1 to 100: 100 for an exact
    claim, 50 for a generic one. `description` is for people ("Llama with 30 layers"). `instead` names the distribution
    that runs this model and `refuse` says why the plugin does not: either turns the answer into "recognised, but not by
    me", which is the error that users see if no other plugin claims the model.

    Raises PluginError for a confidence outside 1 to 100, an empty architecture, or `instead` and `refuse` together.
    """

    architecture: str
    confidence: int = 100
    description: str = ""
    instead: str | None = None
    refuse: str | None = None

    def __post_init__(self) -> None:
        if not self.architecture:
            raise PluginError("Detection without an architecture", remedy="give the name that the file states")
        if not 1 <= self.confidence <= 100:
            raise PluginError(
                f"Detection of {self.architecture!r} has confidence {self.confidence}",
                remedy="use 1 to 100: 100 for an exact claim, 50 for a generic one",
            )
        if self.instead is not None and self.refuse is not None:
            raise PluginError(
                f"Detection of {self.architecture!r} has both instead={self.instead!r} and refuse={self.refuse!r}",
                remedy="give one of them",
            )

    @property
    def refused(self) -> bool:
        """Whether the model was recognised but is not run by the plugin that answers."""
        return self.instead is not None or self.refuse is not None


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model.

    `device`: "auto", "cpu", "cuda" or "cuda:N". `dtype` is the compute type: "auto", "float32", "bfloat16", "float16".
    `context`: tokens of context, None for as many as the model allows and memory holds. `threads`: CPU threads, None
    for the library's choice. `cache_dtype`: element type of the cache, "auto" for the compute type. `placement`: device
    by part of the model. `progress(what, done, total)` is called while loading; `done` and `total` count bytes.

    Raises UsageError for a name that is no text, and for a context or a number of threads that is no integer of its
    range.
    """

    device: str = "auto"
    dtype: str = "auto"
    context: int | None = None
    threads: int | None = None
    cache_dtype: str = "auto"
    placement: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        for name in ("device", "dtype", "cache_dtype"):
            if not isinstance(text := getattr(self, name), str):
                raise UsageError(f"{name} is {text!r}", remedy="use the name as text, or leave it out")
        for name, limit in (("context", MAX_CONTEXT), ("threads", MAX_THREADS)):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= limit:
                raise UsageError(f"{name} is {value!r}", remedy=f"use an integer from 1 to {limit}, or leave it out")


class CausalLM(Protocol):
    """What `load` returns: a model that predicts the next token. It owns no cache."""

    def hidden(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D] after the final norm, for every token of the batch; writes the tokens into the cache."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 [L, V] of hidden states [L, D]."""

    def cache_spec(self) -> Sequence[CacheSpec]:
        """What each layer needs from the cache, one spec per layer."""
