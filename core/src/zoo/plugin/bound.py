"""The plugin that owns a model, with the wrappers of every other plugin around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zoo.errors import PluginError
from zoo.plugin.architecture import ArchitecturePlugin

if TYPE_CHECKING:
    from pluggy import HookCaller
    from torch import Tensor

    from zoo.batch import Batch
    from zoo.cache import KVCache
    from zoo.hooks import CausalLM, LoadOptions
    from zoo.source import ModelSource


class BoundPlugin:
    """Calls the hooks of one plugin. Keeps nothing of the models: one BoundPlugin serves any number of them.

    `name` is the plugin's name, `plugin` the object itself (for its tables: templates, tags, defaults).
    Every method raises what the plugin or a wrapper raises, and PluginError if they answer with nothing.
    """

    __slots__ = ("_eos", "_forward", "_load", "_reset_cache", "_vocab", "forward_is_plain", "name", "plugin")

    def __init__(self, name: str, plugin: object, callers: Mapping[str, HookCaller]) -> None:
        """`callers`: for each hook a caller that reaches this plugin and the wrappers, and no other plugin."""
        self.name = name
        self.plugin = plugin
        self._load = callers["load"]
        self._forward = callers["forward"]
        self._eos = callers["eos"]
        self._vocab = callers["vocab"]
        self._reset_cache = callers["reset_cache"]
        self.forward_is_plain = _is_plain(callers["forward"])
        """Whether `forward` gives `model.logits` of `model.hidden`, with no wrapper around it."""

    def load(self, source: ModelSource, options: LoadOptions) -> CausalLM:
        """Build the model with its weights."""
        model: CausalLM | None = self._load(source=source, options=options)
        if model is None:
            raise self._nothing("load", "the model")
        return model

    def forward(self, model: CausalLM, batch: Batch, cache: KVCache) -> Tensor:
        """Run one step: logits float32 [L, V]."""
        logits: Tensor | None = self._forward(model=model, batch=batch, cache=cache)
        if logits is None:
            raise self._nothing("forward", "the logits")
        return logits

    def eos(self, model: CausalLM) -> frozenset[int]:
        """Token ids that end generation."""
        ids: frozenset[int] | None = self._eos(model=model)
        if ids is None:
            raise self._nothing("eos", "a frozenset of token ids")
        return ids

    def vocab(self, model: CausalLM) -> int:
        """Columns of the logits."""
        size: int | None = self._vocab(model=model)
        if size is None:
            raise self._nothing("vocab", "the number of columns of the logits")
        return size

    def reset_cache(self, model: CausalLM, cache: KVCache) -> None:
        """Zero the state in the cache."""
        self._reset_cache(model=model, cache=cache)

    def _nothing(self, hook: str, wanted: str) -> PluginError:
        return PluginError(
            f"hook {hook} of plugin {self.name!r} returned None",
            remedy=f"return {wanted}, from the plugin and from every wrapper of {hook}",
        )


def _is_plain(forward: HookCaller) -> bool:
    function = forward.get_hookimpls()[0].function if len(forward.get_hookimpls()) == 1 else None
    return getattr(function, "__func__", None) is ArchitecturePlugin.forward
