"""The hook contract between core and plugins: six hooks, in the order in which a model meets them.

`detect` is asked of every plugin; the other five only of the plugin that owns the model. A hook call costs
microseconds: one `forward` a step, never a hook per layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.batch import Batch
    from zoo.cache import KVCache
    from zoo.hooks.types import CausalLM, Detection, LoadOptions
    from zoo.source import ModelSource

PROJECT = "zoo"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class ModelPlugin(Protocol):
    """The hooks. An architecture plugin implements all six; a wrapper plugin wraps any of them (`wrapper=True`)."""

    @hookspec
    def detect(self, source: ModelSource) -> Detection | None:
        """Say whether this plugin knows the model, from headers alone: no tensor is read. None: not mine."""

    @hookspec(firstresult=True)
    def load(self, source: ModelSource, options: LoadOptions) -> CausalLM:
        """Build the model and give it its weights."""

    @hookspec(firstresult=True)
    def forward(self, model: CausalLM, batch: Batch, cache: KVCache) -> Tensor:
        """Run one step: logits float32 [L, V] of the tokens `batch.logits_indices`; new tokens go into the cache."""

    @hookspec(firstresult=True)
    def eos(self, model: CausalLM) -> frozenset[int]:
        """Token ids that end generation; they join those that the tokenizer knows."""

    @hookspec(firstresult=True)
    def vocab(self, model: CausalLM) -> int:
        """V, the number of columns of the logits, which may exceed the tokenizer's vocabulary."""

    @hookspec(firstresult=True)
    def reset_cache(self, model: CausalLM, cache: KVCache) -> None:
        """Zero the state in the cache. The engine drops sequences and prefix hashes itself; memory stays allocated."""


HOOKS = tuple(name for name, value in vars(ModelPlugin).items() if hasattr(value, f"{PROJECT}_spec"))
"""Names of the six hooks."""
