"""A plugin made of tables: what its claims answer, what its hooks call, what it says about mistakes in the tables."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from zoo.batch import Batch
from zoo.errors import PluginError
from zoo.hooks import HOOKS, Detection, LoadOptions, hookimpl
from zoo.plugin import ArchitecturePlugin, Claim
from zoo.plugin.manager import PluginManager
from zoo.settings import Settings


@dataclass
class Source:
    """The part of ModelSource that tables read."""

    architectures: tuple[str, ...]
    format: str
    metadata: dict[str, Any] = field(default_factory=dict)
    path: Path = Path("/models/tiny")


def hf(*names: str) -> Source:
    return Source(names, "safetensors")


def gguf(name: str, **metadata: Any) -> Source:
    return Source((name,), "gguf", metadata)


def has_experts(source: Source) -> bool:
    return source.metadata.get("expert_count", 0) > 0


def tables(**changes: Any) -> dict[str, Any]:
    """Arguments of a plugin whose classes lie in the module that the fixture `package` writes."""
    arguments: dict[str, Any] = {
        "name": "tiny",
        "config": "zoo_tables_pkg:Config",
        "model": "zoo_tables_pkg:Model",
        "hf_names": "zoo_tables_pkg:HF",
        "gguf_names": "zoo_tables_pkg:GGUF",
        "claims": (Claim(hf="TinyForCausalLM"), Claim(gguf="tiny")),
    }
    return arguments | changes


def bound(plugin: object, source: Source) -> Any:
    manager = PluginManager.discover(Settings.from_env({}), extra=(plugin,))
    return manager.bind(manager.detect(source, force=getattr(plugin, "name", None)))


PACKAGE = """
    from zoo.weights import NameMap

    class Config:
        def __init__(self, came_from): self.came_from = came_from
        @classmethod
        def from_hf(cls, source): return cls(("hf", source.path))
        @classmethod
        def from_gguf(cls, source): return cls(("gguf", source.path))

    class Model:
        def __init__(self, config): self.config = config
        def hidden(self, batch, cache): ...
        def logits(self, hidden): ...
        def cache_spec(self): ...

    class Half:
        def hidden(self, batch, cache): ...

    class OtherConfig(Config): ...
    class Other(Model): ...

    HF, GGUF, OTHER = NameMap({"hf": None}), NameMap({"gguf": None}), NameMap({"other": None})
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that `tables` names, and one that cannot be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "zoo_tables_pkg.py").write_text(textwrap.dedent(PACKAGE))
    (tmp_path / "zoo_tables_broken.py").write_text("raise RuntimeError('no luck')")
    import zoo_tables_pkg

    yield zoo_tables_pkg
    del sys.modules["zoo_tables_pkg"]


LLAMA = (
    Claim(hf="LlamaForCausalLM"),
    Claim(gguf="llama", unless=has_experts, instead="zoo-mistral"),
    Claim(gguf="llama-old", when=has_experts, refuse="only its expert models were published"),
    Claim(gguf="silent", when=has_experts),
    Claim(gguf="never", refuse="its attention is not written down anywhere"),
    Claim(hf="both", gguf="both", confidence=50),
    Claim(gguf="twice", refuse="old files only"),
    Claim(gguf="twice", when=has_experts, confidence=10),
    Claim(gguf="twice", when=has_experts, confidence=20),
)


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        (hf("LlamaForCausalLM"), Detection("LlamaForCausalLM")),
        (hf("Wrapper", "LlamaForCausalLM"), Detection("LlamaForCausalLM")),
        (hf("llama"), None),
        (hf(), None),
        (gguf("LlamaForCausalLM"), None),
        (gguf("llama"), Detection("llama")),
        (gguf("llama", expert_count=8), Detection("llama", instead="zoo-mistral")),
        (gguf("llama-old", expert_count=8), Detection("llama-old")),
        (gguf("llama-old"), Detection("llama-old", refuse="only its expert models were published")),
        (gguf("silent", expert_count=8), Detection("silent")),
        (gguf("silent"), None),
        (gguf("never"), Detection("never", refuse="its attention is not written down anywhere")),
        (hf("both"), Detection("both", 50)),
        (gguf("both"), Detection("both", 50)),
        (gguf("twice"), Detection("twice", refuse="old files only")),
        (gguf("twice", expert_count=8), Detection("twice", 20)),
    ],
)
def test_claims(source: Source, answer: Detection | None) -> None:
    assert ArchitecturePlugin(**tables(claims=LLAMA)).detect(source) == answer


def test_both_conditions_must_agree() -> None:
    claim = Claim(gguf="x", when=has_experts, unless=lambda source: source.metadata.get("old", False))
    plugin = ArchitecturePlugin(**tables(claims=(claim,)))
    assert plugin.detect(gguf("x", expert_count=1)) == Detection("x")
    assert plugin.detect(gguf("x")) is None
    assert plugin.detect(gguf("x", expert_count=1, old=True)) is None


def test_architectures_and_formats_are_those_that_run() -> None:
    plugin = ArchitecturePlugin(**tables(claims=LLAMA))
    assert plugin.architectures == ("LlamaForCausalLM", "llama", "llama-old", "silent", "both", "twice")
    assert plugin.formats == ("safetensors", "gguf")
    only = ArchitecturePlugin(**tables(claims=(Claim(gguf="x"), Claim(hf="Y", refuse="no")), hf_names=None))
    assert (only.architectures, only.formats) == (("x",), ("gguf",))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, "Claim without a name; give hf= or gguf="),
        ({"hf": ""}, "Claim without a name"),
        ({"hf": "X", "instead": "zoo-y", "refuse": "no"}, "both instead='zoo-y' and refuse='no'"),
        ({"hf": "X", "confidence": 0}, "confidence 0; use 1 to 100"),
    ],
)
def test_bad_claim(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(PluginError, match=error):
        Claim(**arguments)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"claims": ()}, "plugin 'tiny' claims nothing; give claims="),
        ({"hf_names": None}, 'claims hf names but has no hf_names; give hf_names="module:name"'),
        ({"gguf_names": None}, "claims gguf names but has no gguf_names"),
        ({"config": "zoo_tables_pkg.Config"}, "plugin 'tiny': config is 'zoo_tables_pkg.Config'; write it as"),
        ({"model": "zoo_tables_pkg:Model()"}, "model is 'zoo_tables_pkg:Model"),
        ({"hf_names": ""}, "hf_names is ''"),
    ],
)
def test_bad_tables(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(PluginError, match=error):
        ArchitecturePlugin(**tables(**changes))


def test_a_plugin_holds_no_state() -> None:
    plugin = ArchitecturePlugin(**tables())
    with pytest.raises(FrozenInstanceError):
        plugin.config = "a:B"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        plugin.loaded = 1  # type: ignore[attr-defined]
    assert repr(plugin) == "ArchitecturePlugin('tiny')"


def test_check_accepts_good_tables(package: ModuleType) -> None:
    ArchitecturePlugin(**tables()).check()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"config": "zoo_tables_absent:Config"},
            "config 'zoo_tables_absent:Config' cannot be imported: ModuleNotFound",
        ),
        ({"model": "zoo_tables_broken:Model"}, "cannot be imported: RuntimeError: no luck; correct the reference"),
        ({"gguf_names": "zoo_tables_pkg:Gguf"}, "has no 'Gguf'; name something that .*zoo_tables_pkg.py defines"),
        ({"model": "zoo_tables_pkg:Half"}, "model 'zoo_tables_pkg:Half' has no logits, cache_spec"),
        ({"config": "zoo_tables_pkg:Model"}, "config 'zoo_tables_pkg:Model' has no from_hf"),
        (
            {"hf_names": "zoo_tables_pkg:Model"},
            "hf_names 'zoo_tables_pkg:Model' is a type; make it a zoo.weights.NameMap",
        ),
    ],
)
def test_check_names_the_table(package: ModuleType, changes: dict[str, str], error: str) -> None:
    with pytest.raises(PluginError, match=f"plugin 'tiny': .*{error}"):
        ArchitecturePlugin(**tables(**changes)).check()


@pytest.mark.parametrize(
    ("source", "kind", "names"), [(hf("TinyForCausalLM"), "hf", "HF"), (gguf("tiny"), "gguf", "GGUF")]
)
def test_load_passes_what_the_tables_name(
    package: ModuleType, monkeypatch: pytest.MonkeyPatch, source: Source, kind: str, names: str
) -> None:
    calls: list[tuple[Any, ...]] = []

    def load_model(*arguments: Any) -> str:
        calls.append(arguments)
        return "model"

    monkeypatch.setitem(sys.modules, "zoo.weights.loader", SimpleNamespace(load_model=load_model))
    options = LoadOptions(context=5)
    assert bound(ArchitecturePlugin(**tables()), source).load(source, options) == "model"
    ((seen_source, seen_options, model, seen_names),) = calls
    assert (seen_source, seen_options, seen_names) == (source, options, getattr(package, names))
    assert isinstance(model, package.Model)
    assert isinstance(model.config, package.Config)
    assert model.config.came_from == (kind, source.path)


MEMBERS = (
    Claim(hf="TinyForCausalLM", gguf="tiny"),
    Claim(
        hf="OtherForCausalLM",
        gguf="other",
        config="zoo_tables_pkg:OtherConfig",
        model="zoo_tables_pkg:Other",
        hf_names="zoo_tables_pkg:OTHER",
    ),
)


@pytest.mark.parametrize(
    ("source", "model", "config", "names"),
    [
        (hf("TinyForCausalLM"), "Model", "Config", "HF"),
        (gguf("tiny"), "Model", "Config", "GGUF"),
        (hf("OtherForCausalLM"), "Other", "OtherConfig", "OTHER"),
        (gguf("other"), "Other", "OtherConfig", "GGUF"),
    ],
)
def test_a_claim_may_name_classes_of_its_own(
    package: ModuleType, monkeypatch: pytest.MonkeyPatch, source: Source, model: str, config: str, names: str
) -> None:
    load_model = SimpleNamespace(load_model=lambda source, options, model, names: (model, names))
    monkeypatch.setitem(sys.modules, "zoo.weights.loader", load_model)
    made, table = bound(ArchitecturePlugin(**tables(claims=MEMBERS)), source).load(source, LoadOptions())
    assert type(made) is getattr(package, model)
    assert type(made.config) is getattr(package, config)
    assert table is getattr(package, names)


def test_classes_may_be_named_by_claims_only(package: ModuleType) -> None:
    claim = MEMBERS[1]
    bare = {"config": None, "model": None, "hf_names": None}
    plugin = ArchitecturePlugin(**tables(claims=(claim,), **bare))
    plugin.check()
    assert type(plugin.build(hf("OtherForCausalLM"))) is package.Other
    source = hf("Unheard")
    with pytest.raises(PluginError, match=r"'tiny' does not know how to run /models/tiny; it runs OtherForCausalLM"):
        bound(plugin, source).load(source, LoadOptions())
    with pytest.raises(PluginError, match="'tiny' claims TinyForCausalLM but has no config"):
        ArchitecturePlugin(**tables(claims=MEMBERS, **bare))
    for table, error in (("model", "Half' has no logits"), ("config", "Model' has no from_hf, from_gguf")):
        wrong = replace(claim, **{table: "zoo_tables_pkg:Half" if table == "model" else "zoo_tables_pkg:Model"})
        with pytest.raises(PluginError, match=error):
            ArchitecturePlugin(**tables(claims=(wrong,), **bare)).check()
    with pytest.raises(PluginError, match=r"hf_names is 'zoo_tables_pkg\.OTHER'; write it as"):
        ArchitecturePlugin(**tables(claims=(replace(claim, hf_names="zoo_tables_pkg.OTHER"),)))


def test_load_of_a_format_that_the_plugin_does_not_read(package: ModuleType) -> None:
    plugin = ArchitecturePlugin(**tables(claims=(Claim(gguf="tiny"),), hf_names=None))
    source = hf("Unheard")
    with pytest.raises(PluginError, match=r"'tiny' does not read safetensors files, which /models/tiny is; .* in gguf"):
        bound(plugin, source).load(source, LoadOptions())


class Doubling:
    """A model: hidden states are twice the position, logits three times those."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(eos_token_ids=(2, 5, 2), vocab_size=3)

    def hidden(self, batch: Batch, cache: Any) -> torch.Tensor:
        cache.written.append(batch.num_tokens)
        return 2.0 * batch.positions[:, None].float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * torch.tensor([[1.0, 0.0, 3.0]])


class Cache:
    def __init__(self) -> None:
        self.written: list[int] = []

    def reset(self) -> None:
        self.written.clear()


def test_hooks_of_a_loaded_model() -> None:
    index = {"dtype": torch.int32}
    batch = Batch(
        input_ids=torch.tensor([4, 5, 6], **index),
        positions=torch.tensor([0, 1, 7], **index),
        cu_seqlens=torch.tensor([0, 2, 3], **index),
        seq_lens=torch.tensor([2, 8], **index),
        logits_indices=torch.tensor([1, 2], **index),
        tables={},
        query_lens=(2, 1),
        max_query_len=2,
        max_seq_len=8,
        request_ids=("a", "b"),
    )
    plugin = bound(ArchitecturePlugin(**tables()), hf("TinyForCausalLM"))
    model, cache = Doubling(), Cache()
    logits = plugin.forward(model, batch, cache)
    assert logits.dtype == torch.float32
    assert logits.tolist() == [[2.0, 0.0, 6.0], [14.0, 0.0, 42.0]]
    assert plugin.eos(model) == frozenset({2, 5})
    assert plugin.vocab(model) == 3
    assert cache.written == [3]
    plugin.reset_cache(model, cache)
    assert cache.written == []


# Overrides in subclasses


class Unmarked(ArchitecturePlugin):
    def eos(self, model: Any) -> frozenset[int]:
        return super().eos(model) | {7}


class Marked(ArchitecturePlugin):
    @hookimpl(tryfirst=True)
    def eos(self, model: Any) -> frozenset[int]:
        return frozenset({2, 5, 7})


class Static(ArchitecturePlugin):
    @staticmethod
    def eos(model: Any) -> frozenset[int]:  # type: ignore[override]
        return frozenset({2, 5, 7})


class Mixin:
    def eos(self, model: Any) -> frozenset[int]:
        return frozenset({2, 5, 7})


class Mixed(Mixin, ArchitecturePlugin):
    pass


class Grandchild(Unmarked):
    def eos(self, model: Any) -> frozenset[int]:
        return super().eos(model)


@pytest.mark.parametrize("kind", [Unmarked, Marked, Static, Mixed, Grandchild])
def test_an_override_stays_a_hook(kind: type[ArchitecturePlugin]) -> None:
    plugin = bound(kind(**tables()), hf("TinyForCausalLM"))
    assert plugin.eos(Doubling()) == {2, 5, 7}
    assert plugin.vocab(Doubling()) == 3, "and the others stay what they were"


@pytest.mark.parametrize("hook", HOOKS)
def test_an_override_that_is_no_method(hook: str) -> None:
    with pytest.raises(PluginError, match=rf"Wrong.{hook} is a frozenset, but {hook} is a hook; make it a method"):
        type("Wrong", (ArchitecturePlugin,), {hook: frozenset({2})})


def test_an_override_that_wraps_is_refused() -> None:
    class Wrapping(ArchitecturePlugin):
        @hookimpl(wrapper=True)
        def forward(self, model: Any, batch: Any, cache: Any) -> Any:
            return (yield)

    with pytest.raises(PluginError, match="and wraps 'forward'; put answers and wrappers into two objects"):
        bound(Wrapping(**tables()), hf("TinyForCausalLM"))


def test_a_failing_condition_names_the_plugin() -> None:
    def fails(source: Source) -> bool:
        raise KeyError("expert_count")

    plugin = ArchitecturePlugin(**tables(claims=(Claim(gguf="tiny", when=fails),)))
    with pytest.raises(PluginError, match=r"plugin 'tiny' failed while looking at .*: KeyError: 'expert_count'"):
        bound(plugin, gguf("tiny"))


def test_the_table_of_extras_reaches_core() -> None:
    extras = {"reasoning_tags": ("<think>", "</think>"), "pre": {"tiny": (r"\d",)}, "sampling_defaults": {"top_p": 0.9}}
    owner = bound(ArchitecturePlugin(**tables(**extras)), hf("TinyForCausalLM")).plugin
    assert {name: getattr(owner, name) for name in extras} == extras
