"""A plugin made of tables: what it claims and which classes answer. Imports no torch; classes are named by strings.

An author writes one instance and names it in the entry point:

    plugin = ArchitecturePlugin(
        name="llama", config="zoo_llama.config:LlamaConfig", model="zoo_llama.model:LlamaForCausalLM",
        hf_names="zoo_llama.weights:HF", gguf_names="zoo_llama.weights:GGUF",
        claims=(Claim(hf="LlamaForCausalLM"), Claim(gguf="llama", unless=has_experts, instead="zoo-mistral")),
    )
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from zoo.errors import PluginError
from zoo.hooks import HOOKS, PROJECT, CausalLM, Detection, LoadOptions, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.batch import Batch
    from zoo.cache import KVCache
    from zoo.source import ModelSource

Condition = Callable[["ModelSource"], bool]
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_TABLES = ("config", "model", "hf_names", "gguf_names")
_CONSTRUCTOR = {"safetensors": "from_hf", "gguf": "from_gguf"}


class ModelConfig(Protocol):
    """What the hooks read of a configuration."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    @property
    def eos_token_ids(self) -> Sequence[int]:
        """Token ids that end generation."""


class ConfiguredCausalLM(CausalLM, Protocol):
    """A CausalLM that carries its configuration: what `ArchitecturePlugin` loads."""

    @property
    def config(self) -> ModelConfig:
        """The configuration that the model was built from."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One architecture name, and the conditions under which the plugin runs models of that name.

    `hf` is an entry of `architectures` in config.json, `gguf` a `general.architecture`. `when` must hold and `unless`
    must not; both read headers only. Where they fail, `instead` names the distribution that runs such a model, and
    `refuse` says why this plugin does not; with neither, the claim is silent. A claim without conditions that has one
    of the two always refuses.

    Raises PluginError for a claim without a name, for `instead` together with `refuse`, and for a confidence outside 1
    to 100.

    `config`, `model`, `hf_names` and `gguf_names` stand in the place of the plugin's for the models of this claim: a
    family whose members differ has one model class each.
    """

    hf: str | None = None
    gguf: str | None = None
    when: Condition | None = None
    unless: Condition | None = None
    instead: str | None = None
    refuse: str | None = None
    confidence: int = 100
    config: str | None = None
    model: str | None = None
    hf_names: str | None = None
    gguf_names: str | None = None

    def __post_init__(self) -> None:
        if not self.hf and not self.gguf:
            raise PluginError("Claim without a name", remedy="give hf= or gguf=")
        Detection(
            self.hf or self.gguf or "", self.confidence, "", self.instead, self.refuse
        )  # its checks hold here too

    @property
    def runs(self) -> bool:
        """Whether any model of this name is run by the plugin."""
        conditional = self.when is not None or self.unless is not None
        return conditional or (self.instead is None and self.refuse is None)

    def detect(self, source: ModelSource) -> Detection | None:
        """The claim's answer for one model; None: another name, or the conditions fail and the claim is silent."""
        name = self.hf if source.format == "safetensors" else self.gguf
        if name is None or name not in source.architectures:
            return None
        holds = (self.when is None or self.when(source)) and (self.unless is None or not self.unless(source))
        if holds and self.runs:
            return Detection(name, self.confidence)
        if self.instead is None and self.refuse is None:
            return None
        return Detection(name, self.confidence, instead=self.instead, refuse=self.refuse)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ArchitecturePlugin:
    """All six hooks from tables. Frozen: a plugin holds no state, so two of its models live side by side.

    `name` is what `--plugin` and the entry point call it. `config`, `model`, `hf_names`, `gguf_names` are "module:name"
    references, imported at load: a configuration class with `from_hf(source)` and `from_gguf(source)`, a torch module
    class that is a CausalLM and keeps its configuration in `config`, and one name map per format that the claims
    mention; a claim may name its own. The model may have `notes`, sentences for its user. `reasoning_tags`: opening and
    closing tag of thoughts. `tool_call_format`: name of the format in which the model calls tools. `chat_template`: for
    models that ship none. `pre`: regexes, applied in order, of pre-tokeniser names that core does not know.
    `sampling_defaults`: sampling parameters for models that ship none. `shapes`: "module:name" of a mapping from names
    of published models to the content of their config.json, for `zoo bench --synthetic`. `dtypes`: the compute types in
    which the numbers of all its models stay finite.

    A subclass may override any hook; the override stays a hook without a marker.

    Raises PluginError for a reference that is not "module:name", for missing claims, classes or names, and, in a
    subclass, for a hook that is not a method.
    """

    name: str
    config: str | None = None
    model: str | None = None
    hf_names: str | None = None
    gguf_names: str | None = None
    claims: tuple[Claim, ...] = ()
    reasoning_tags: tuple[str, str] | None = None
    tool_call_format: str | None = None
    chat_template: str | None = None
    pre: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    shapes: str | None = None
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for hook in HOOKS:
            _keep_marked(cls, hook)

    def __post_init__(self) -> None:
        if not self.claims:
            raise PluginError(f"plugin {self.name!r} claims nothing", remedy="give claims=(Claim(...), ...)")
        for claim in filter(lambda claim: claim.runs, self.claims):
            for table in _needed(claim):
                if self._reference(table, claim) is None:
                    kind = f"{table.split('_')[0]} names" if table.endswith("_names") else claim.hf or claim.gguf
                    raise PluginError(
                        f"plugin {self.name!r} claims {kind} but has no {table}", remedy=f'give {table}="module:name"'
                    )
        for table, reference in self._references():
            if not _REFERENCE.fullmatch(reference):
                raise PluginError(
                    f"plugin {self.name!r}: {table} is {reference!r}", remedy='write it as "package.module:name"'
                )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def architectures(self) -> tuple[str, ...]:
        """Every name that the plugin runs, Hugging Face and GGUF ones, in order of the claims."""
        names = (name for claim in self.claims if claim.runs for name in (claim.hf, claim.gguf) if name)
        return tuple(dict.fromkeys(names))

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that the plugin reads."""
        running = [claim for claim in self.claims if claim.runs]
        found = {"safetensors": any(c.hf for c in running), "gguf": any(c.gguf for c in running)}
        return tuple(name for name, there in found.items() if there)

    def check(self) -> None:
        """Import everything that the tables name and look for what the hooks call. For a plugin's own tests.

        Raises PluginError naming the table and what is missing. Imports torch, as the model does.
        """
        from zoo.weights.names import NameMap  # imports torch

        for claim in filter(lambda claim: claim.runs, self.claims):
            wanted = {
                "config": tuple(_CONSTRUCTOR[name] for name in _formats(claim)),
                "model": ("hidden", "logits", "cache_spec"),
            }
            for table in _needed(claim):
                reference = self._reference(table, claim)
                assert reference is not None  # __post_init__ has seen to it
                value = self._import(table, reference)
                missing = [method for method in wanted.get(table, ()) if not callable(getattr(value, method, None))]
                if missing:
                    raise PluginError(
                        f"plugin {self.name!r}: {table} {reference!r} has no {', '.join(missing)}",
                        remedy="add the missing methods",
                    )
                if table.endswith("_names") and not isinstance(value, NameMap):
                    raise PluginError(
                        f"plugin {self.name!r}: {table} {reference!r} is a {type(value).__name__}",
                        remedy="make it a zoo.weights.NameMap",
                    )

    @hookimpl
    def detect(self, source: ModelSource) -> Detection | None:
        """The best answer of the claims: one that runs the model before one that refuses it, then by confidence."""
        best = self._best(source)
        return None if best is None else best[1]

    @hookimpl
    def load(self, source: ModelSource, options: LoadOptions) -> CausalLM:
        """Build the configuration of the file's format, then the model on it, with its weights."""
        from zoo.weights.loader import load_model  # imports torch

        names = self._table("hf_names" if source.format == "safetensors" else "gguf_names", source)
        return load_model(source, options, self.build(source), names)

    def build(self, source: ModelSource) -> Any:
        """The model of a source without its weights: modules on the meta device. Costs no memory, reads headers only.

        Raises ConfigError where the configuration is impossible, PluginError for a model that the plugin has no class
        for.
        """
        config, model = self._table("config", source), self._table("model", source)
        return model(getattr(config, _CONSTRUCTOR[source.format])(source))

    @hookimpl
    def forward(self, model: CausalLM, batch: Batch, cache: KVCache) -> Tensor:
        """Logits float32 [L, V] of the tokens whose logits the batch wants."""
        return model.logits(model.hidden(batch, cache)[batch.logits_indices])

    @hookimpl
    def eos(self, model: ConfiguredCausalLM) -> frozenset[int]:
        """The end-of-sequence ids of the configuration."""
        return frozenset(model.config.eos_token_ids)

    @hookimpl
    def vocab(self, model: ConfiguredCausalLM) -> int:
        """The vocabulary size of the configuration."""
        return model.config.vocab_size

    @hookimpl
    def reset_cache(self, model: CausalLM, cache: KVCache) -> None:
        """Zero the recurrent states of the cache."""
        cache.reset()

    def published(self) -> Mapping[str, Mapping[str, Any]]:
        """The content of config.json of published models, by name; empty without `shapes`.

        Raises PluginError for a reference that cannot be imported or is no mapping.
        """
        if self.shapes is None:
            return {}
        shapes = self._import("shapes", self.shapes)
        if not isinstance(shapes, Mapping):
            raise PluginError(
                f"plugin {self.name!r}: shapes {self.shapes!r} is a {type(shapes).__name__}",
                remedy="make it a mapping from names to the content of config.json",
            )
        return shapes

    def _best(self, source: ModelSource) -> tuple[Claim, Detection] | None:
        answers = [(claim, answer) for claim in self.claims if (answer := claim.detect(source)) is not None]
        return max(answers, key=lambda pair: (not pair[1].refused, pair[1].confidence), default=None)

    def _table(self, table: str, source: ModelSource) -> Any:
        """What a table names for a source, imported. A plugin that was forced on a model has what no claim replaces."""
        best = self._best(source)
        reference = self._reference(table, None if best is None else best[0])
        if reference is not None:
            return self._import(table, reference)
        if source.format not in self.formats:
            raise PluginError(
                f"plugin {self.name!r} does not read {source.format} files, which {source.path} is",
                remedy=f"take the model in {' or '.join(self.formats)}, or leave --plugin out",
            )
        raise PluginError(
            f"plugin {self.name!r} does not know how to run {source.path}",
            remedy=f"it runs {', '.join(self.architectures)}; leave --plugin out",
        )

    def _reference(self, table: str, claim: Claim | None) -> str | None:
        """What a table says for the models of a claim."""
        own: str | None = getattr(claim, table, None)
        return getattr(self, table) if own is None else own

    def _references(self) -> list[tuple[str, str]]:
        pairs = ((table, getattr(owner, table)) for owner in (self, *self.claims) for table in _TABLES)
        return [(table, reference) for table, reference in (*pairs, ("shapes", self.shapes)) if reference is not None]

    def _import(self, table: str, reference: str) -> Any:
        module_name, _, attribute = reference.partition(":")
        where = f"plugin {self.name!r}: {table} {reference!r}"
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise PluginError(
                f"{where} cannot be imported: {type(error).__name__}: {error}",
                remedy="correct the reference, or reinstall the plugin",
            ) from error
        try:
            return getattr(module, attribute)
        except AttributeError as error:
            raise PluginError(
                f"{where}: the module has no {attribute!r}", remedy=f"name something that {module.__file__} defines"
            ) from error


def _formats(claim: Claim) -> tuple[str, ...]:
    """The formats that a claim is about."""
    return tuple(form for form, name in (("safetensors", claim.hf), ("gguf", claim.gguf)) if name)


def _needed(claim: Claim) -> tuple[str, ...]:
    """The tables that the models of a claim are loaded by."""
    names = (table for table, name in (("hf_names", claim.hf), ("gguf_names", claim.gguf)) if name)
    return ("config", "model", *names)


def _keep_marked(cls: type, hook: str) -> None:
    """Mark an override as a hook: pluggy skips unmarked methods without a word."""
    found = inspect.getattr_static(cls, hook)
    function = found.__func__ if isinstance(found, staticmethod | classmethod) else found
    if not inspect.isfunction(function):
        raise PluginError(
            f"{cls.__module__}.{cls.__qualname__}.{hook} is a {type(found).__name__}, but {hook} is a hook",
            remedy="make it a method",
        )
    marker = f"{PROJECT}_impl"
    if not hasattr(found, marker) and not hasattr(function, marker):
        hookimpl(function)
