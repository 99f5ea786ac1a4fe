"""Models with random weights, in the shape of published ones, for `zoo bench --synthetic`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoo.cli.options import parse_overrides
from zoo.errors import UsageError
from zoo.formats.tensor import TensorInfo
from zoo.plugin.manager import PluginManager
from zoo.settings import Settings
from zoo.source import ModelSource

if TYPE_CHECKING:
    from zoo.llm import LLM


def load_synthetic(name: str, form_name: str, layers: int | None, options: dict[str, Any]) -> LLM:
    """A model of random weights on the device that the options name.

    `name`: a published model that an installed plugin describes, or the path of a config.json or its directory.
    Raises UsageError for an unknown name or form, and what building and placing the model raise.
    """
    from zoo.hooks import LoadOptions
    from zoo.llm import LLM
    from zoo.tokenizer.numbered import numbered
    from zoo.weights.forms import declared, form, form_types, nbytes
    from zoo.weights.loader import resolve_device, resolve_dtype
    from zoo.weights.synthetic import synthesize

    started = time.perf_counter()
    chosen = form(form_name)
    manager = PluginManager.discover(Settings.from_env())
    overrides = parse_overrides(options["overrides"])
    source = _source(name, layers, overrides, manager)
    owner = manager.detect(source, force=options["plugin"])
    bound = manager.bind(owner)
    build = getattr(bound.plugin, "build", None)
    if build is None:
        raise UsageError(f"plugin {owner.name!r} builds no model from a configuration", remedy="take a file of it")
    model = build(source)
    shapes = declared(model)
    tensors = {
        target: TensorInfo(target, kind, shapes[target], source.path, 0, nbytes(kind, shapes[target]))
        for target, kind in form_types(model, chosen).items()
    }
    source = ModelSource.from_config(f"{name} ({form_name})", source.config, tensors=tensors)
    load_options = LoadOptions(options["device"], options["dtype"], options["context"], options["threads"])
    model = synthesize(model, chosen, resolve_device(load_options.device), resolve_dtype(load_options, source))
    tokenizer = numbered(bound.vocab(model))
    llm = LLM(source, bound, owner.detection.architecture, load_options, model=model, tokenizer=tokenizer)
    llm.load_s = time.perf_counter() - started
    return llm


def _source(name: str, layers: int | None, overrides: Mapping[str, object], manager: PluginManager) -> ModelSource:
    if os.sep in name or os.path.exists(name):
        config = ModelSource.from_config(name, overrides=overrides).config
    else:
        shapes = manager.published()
        if name not in shapes:
            remedy = f"use {', '.join(sorted(shapes))}, or the path of a config.json" if shapes else "install a plugin"
            raise UsageError(f"no installed plugin describes the model {name!r}", remedy=remedy)
        config = ModelSource.from_config(name, shapes[name], overrides).config
    return ModelSource.from_config(name, config if layers is None else _cut(config, layers))


def _cut(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The configuration of the first `layers` layers; lists with an entry per layer are cut too."""
    whole = config.get("num_hidden_layers")
    if isinstance(whole, int) and layers > whole:
        raise UsageError(f"the model has {whole} layers, not {layers}", remedy=f"use --layers {whole} or fewer")
    cut = {key: value[:layers] if isinstance(value, list) and len(value) == whole else value
           for key, value in config.items()}  # fmt: skip
    return cut | {"num_hidden_layers": layers}
