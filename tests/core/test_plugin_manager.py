"""The registry: discovery of good and broken plugins, whose model is whose, and calls that reach the owner only."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from zoo.cli.plugins import plugins as plugins_command
from zoo.errors import PluginError, UsageError
from zoo.hooks import HOOKS, Detection, LoadOptions, hookimpl
from zoo.plugin.known import KNOWN_ARCHITECTURES
from zoo.plugin.manager import PluginManager
from zoo.settings import Settings


@dataclass
class Source:
    """The part of ModelSource that detection reads."""

    architectures: tuple[str, ...] = ("TinyForCausalLM",)
    format: str = "safetensors"
    path: Path = Path("/models/tiny")


class Tiny:
    """A plugin without tables. Its model is whatever `load` returns; the calls say who answered."""

    architectures = ("TinyForCausalLM",)
    formats = ("safetensors",)

    def __init__(self, name: str, confidence: int = 100, **detection: Any) -> None:
        self.name = name
        self.answer: Any = Detection("TinyForCausalLM", confidence, **detection) if confidence else None

    @hookimpl
    def detect(self, source: Source) -> Any:
        return self.answer

    @hookimpl
    def load(self, source: Source, options: LoadOptions) -> Any:
        return {"owner": self.name, "context": options.context}

    @hookimpl
    def forward(self, model: Any, batch: Any, cache: Any) -> Any:
        return (self.name, model["context"], batch, cache)

    @hookimpl
    def eos(self, model: Any) -> frozenset[int]:
        return frozenset({model["context"]})

    @hookimpl
    def vocab(self, model: Any) -> int:
        return int(model["context"]) * 10

    @hookimpl
    def reset_cache(self, model: Any, cache: Any) -> None:
        cache.append(self.name)


class Recorder:
    """A wrapper of forward that writes down what passes."""

    name = "recorder"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl(wrapper=True)
    def forward(self, model: Any, batch: Any, cache: Any) -> Any:
        logits = yield
        self.seen.append((model["owner"], batch, logits))
        return (*logits, "wrapped")


GOOD = """
    from zoo.hooks import Detection, hookimpl

    class Plugin:
        architectures = ("{arch}",)
        formats = ("gguf",)

        @hookimpl
        def detect(self, source):
            return Detection("{arch}") if "{arch}" in source.architectures else None

        @hookimpl
        def load(self, source, options): return "{name}"

        @hookimpl
        def forward(self, model, batch, cache): return "{name}"

        @hookimpl
        def eos(self, model): return frozenset({{2}})

        @hookimpl
        def vocab(self, model): return 10

        @hookimpl
        def reset_cache(self, model, cache): pass

    plugin = Plugin()
"""


class Site:
    """A folder of installed distributions, the only one that discovery sees."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(self, name: str, code: str | None = None, value: str | None = None, text: str | None = None) -> str:
        """Install distribution zoo-NAME with one entry point NAME; returns the name of its module."""
        module = f"zoo_site_{name}"
        source = GOOD.format(name=name, arch=name.title()) if code is None else code
        (self.path / f"{module}.py").write_text(textwrap.dedent(source))
        info = self.path / f"zoo_{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: zoo-{name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(text or f"[zoo]\n{name} = {value or module + ':plugin'}\n")
        return module


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = functools.partial(metadata.distributions, path=[str(tmp_path)])
    monkeypatch.setattr(metadata, "distributions", seen)
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if name.startswith("zoo_site_"):
            del sys.modules[name]


def discover(environ: dict[str, str] | None = None, *extra: object) -> PluginManager:
    return PluginManager.discover(Settings.from_env(environ or {}), extra=extra)


# Discovery


def test_installed_plugin_is_a_row_and_owns_its_model(site: Site) -> None:
    site.install("good")
    manager = discover()
    (row,) = manager.rows
    assert (row.name, row.distribution, row.version, row.error) == ("good", "zoo-good", "1.2", None)
    assert (row.architectures, row.formats) == (("Good",), ("gguf",))
    owner = manager.detect(Source(("Good",), "gguf"))
    assert (owner.name, owner.distribution, owner.version, owner.detection.confidence) == (
        "good",
        "zoo-good",
        "1.2",
        100,
    )


BROKEN = {
    "raises at import": ("raise RuntimeError('no luck\\nat all')", "RuntimeError: no luck at all"),
    "exits at import": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "lacks a dependency": ("import zoo_no_such_module", "No module named 'zoo_no_such_module'"),
    "syntax error": ("def (", "SyntaxError"),
    "names nothing": ("", "has no attribute 'plugin'"),
    "names a class": ("class plugin: pass", "is a class, not a plugin object; name an instance of it"),
    "names a module": ("import json as plugin", "is a module, not a plugin object"),
    "names None": ("plugin = None", "has no hooks: it is a NoneType"),
    "has no hooks": ("plugin = 'llama'", "has no hooks: it is a str"),
    "misspells a hook": (
        GOOD.format(name="bad", arch="Bad").replace("def forward", "def forwrd"),
        "unknown hook 'forwrd'",
    ),
    "has a parameter no hook has": (
        GOOD.format(name="bad", arch="Bad").replace("model, batch, cache", "model, batches, cache"),
        "batches",
    ),
    "forgets a marker": (
        GOOD.format(name="bad", arch="Bad").replace("@hookimpl\n        def eos", "def eos"),
        "eos has the name of a hook but no marker; put @hookimpl on it",
    ),
    "forgets a hook": (
        GOOD.format(name="bad", arch="Bad").replace("@hookimpl\n        def eos", "def other"),
        "but not 'eos'; answer all six hooks",
    ),
    "mixes answers and wrappers": (
        GOOD.format(name="bad", arch="Bad").replace(
            "@hookimpl\n        def eos(self, model): return frozenset({2})",
            "@hookimpl(wrapper=True)\n        def eos(self, model): return (yield)",
        ),
        "and wraps 'eos'; put answers and wrappers into two objects",
    ),
    "cannot be hashed": (
        GOOD.format(name="bad", arch="Bad").replace("formats = ", "__hash__ = None; formats = "),
        "cannot be hashed; let it compare by identity",
    ),
    "says one string for architectures": (
        GOOD.format(name="bad", arch="Bad").replace('("Bad",)', '"Bad"'),
        "architectures is 'Bad'; make it a tuple of strings",
    ),
    "raises in a property": (
        GOOD.format(name="bad", arch="Bad").replace('("Bad",)', "property(lambda self: 1 // 0)"),
        "ZeroDivisionError",
    ),
    "calls itself something else": (
        """
        from zoo.plugin import ArchitecturePlugin, Claim
        claims = (Claim(gguf="x"),)
        plugin = ArchitecturePlugin(name="worse", config="a:B", model="a:C", gguf_names="a:D", claims=claims)
        """,
        "entry point 'bad' names a plugin that calls itself 'worse'; give both one name",
    ),
}


@pytest.mark.parametrize(("code", "error"), BROKEN.values(), ids=BROKEN)
def test_broken_plugin_is_a_row_and_harms_no_other(site: Site, code: str, error: str) -> None:
    site.install("bad", code)
    site.install("good")
    manager = discover()
    bad, good = manager.rows
    assert (bad.name, bad.distribution, bad.version) == ("bad", "zoo-bad", "1.2")
    assert error in (bad.error or "")
    assert "\n" not in (bad.error or "")
    assert good.error is None
    assert manager.detect(Source(("Good",), "gguf")).name == "good"
    with pytest.raises(PluginError, match=r"plugin 'bad' is broken: .*"):
        manager.detect(Source(("Good",), "gguf"), force="bad")
    with pytest.raises(PluginError, match="broken, so not asked: bad "):
        manager.detect(Source(("Unheard",), "gguf"))


@pytest.mark.parametrize("value", ["zoo_site_bad", "zoo_site_bad:", "two words:plugin", "zoo_site_bad:plugin[extra"])
def test_entry_point_that_names_no_object(site: Site, value: str) -> None:
    site.install("bad", value=value)
    (row,) = discover().rows
    assert f"entry point 'bad' of zoo-bad names {value!r}, not an object" in (row.error or "")
    assert "[project.entry-points.zoo]" in (row.error or "")


def test_damaged_entry_points_file_is_a_row(site: Site) -> None:
    site.install("bad", text="[zoo]\nno equals sign\n")
    site.install("good")
    good, bad = discover().rows
    assert bad.name == "zoo-bad"
    assert "entry_points.txt cannot be read" in (bad.error or "")
    assert good.error is None


def test_entry_points_file_that_is_no_text_is_a_row(site: Site) -> None:
    site.install("bad")
    (site.path / "zoo_bad-1.2.dist-info" / "entry_points.txt").write_bytes(b"[zoo]\n\xff\xfe = a:b\n")
    (row,) = discover().rows
    assert "entry_points.txt cannot be read: UnicodeDecodeError" in (row.error or "")


def test_distribution_without_metadata_still_has_its_plugin(site: Site) -> None:
    site.install("good")
    (site.path / "zoo_good-1.2.dist-info" / "METADATA").unlink()
    (row,) = discover().rows
    assert (row.name, row.distribution, row.error) == ("good", "unknown", None)


def test_two_distributions_with_one_name(site: Site) -> None:
    site.install("first")
    site.install("second", text="[zoo]\nfirst = zoo_site_second:plugin\n")
    rows = discover().rows
    assert [row.name for row in rows] == ["first", "first"]
    errors = [row.error for row in rows if row.error]
    assert len(errors) == 1
    assert "the name 'first' is taken by the plugin of zoo-" in errors[0]


def test_two_entry_points_for_one_object(site: Site) -> None:
    site.install("good", text="[zoo]\ngood = zoo_site_good:plugin\nagain = zoo_site_good:plugin\n")
    rows = discover().rows
    assert sorted(row.error is None for row in rows) == [False, True]
    assert discover().detect(Source(("Good",), "gguf")).name == "good"


def test_distribution_found_twice_counts_once(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    site.install("good")
    other = tmp_path_factory.mktemp("other")
    copy = other / "zoo.good-1.1.dist-info"
    copy.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        text = (site.path / "zoo_good-1.2.dist-info" / name).read_text()
        (copy / name).write_text(text.replace("zoo-good", "Zoo_Good").replace("1.2", "1.1"))
    metadata.distributions.keywords["path"].append(str(other))  # type: ignore[attr-defined]
    (row,) = discover().rows
    assert (row.version, row.error) == ("1.2", None)


def test_other_groups_are_left_alone(site: Site) -> None:
    site.install("bad", "raise RuntimeError", text="[zoological]\nbad = zoo_site_bad:plugin\n")
    site.install("damaged", text="[console_scripts]\nno equals sign\n")
    assert discover().rows == []
    assert "zoo_site_bad" not in sys.modules


def test_zoo_plugins_selects(site: Site) -> None:
    site.install("one")
    site.install("two")
    manager = discover({"ZOO_PLUGINS": "two"})
    assert [row.name for row in manager.rows] == ["two"]
    assert "zoo_site_one" not in sys.modules, "a plugin that was left out is not imported"
    with pytest.raises(PluginError, match="there is no plugin 'one'; those that work: two"):
        manager.detect(Source(("One",), "gguf"), force="one")


def test_zoo_plugins_names_an_unknown_plugin(site: Site) -> None:
    site.install("one")
    with pytest.raises(PluginError, match=r"ZOO_PLUGINS names 'ones', which no .* installed: one"):
        discover({"ZOO_PLUGINS": "one,ones"})


def test_extra_objects_join_the_installed_ones(site: Site) -> None:
    site.install("good")
    manager = discover({}, Tiny("mine"))
    assert [(row.name, row.distribution, row.version) for row in manager.rows] == [
        ("good", "zoo-good", "1.2"),
        ("mine", None, None),
    ]
    assert manager.detect(Source()).name == "mine"


def test_installed_plugin_passed_as_extra_is_one_plugin(site: Site) -> None:
    module = site.install("good")
    discover()
    manager = discover({}, sys.modules[module].plugin)
    assert [row.name for row in manager.rows] == ["good"]


class Misspelt(Tiny):
    @hookimpl
    def forwrd(self, model: Any) -> None: ...


class Unmarked(Tiny):
    def forward(self, model: Any, batch: Any, cache: Any) -> Any: ...


class Observer:
    @hookimpl
    def forward(self, model: Any) -> None: ...


EXTRA_ERRORS = {
    "class": (Tiny, "plugin 'Tiny' is a class|plugin 'type' is a class"),
    "module": (json, "is a module, not a plugin object"),
    "misspelt": (Misspelt("tiny"), "unknown hook 'forwrd'.*the hooks are detect, load, forward"),
    "unmarked": (Unmarked("tiny"), "forward has the name of a hook but no marker"),
    "observer": (Observer(), "'Observer' answers 'forward' but not .*wrapper=True"),
    "nothing": (object(), "has no hooks: it is a object"),
}


@pytest.mark.parametrize(("plugin", "error"), EXTRA_ERRORS.values(), ids=EXTRA_ERRORS)
def test_bad_extra_object_raises(site: Site, plugin: object, error: str) -> None:
    with pytest.raises(PluginError, match=error):
        discover({}, plugin)


def test_extra_object_with_a_name_that_is_taken(site: Site) -> None:
    site.install("good")
    with pytest.raises(PluginError, match="the name 'good' is taken by the plugin of zoo-good"):
        discover({}, Tiny("good"))
    with pytest.raises(PluginError, match="the name 'tiny' is taken by the plugin of this script"):
        discover({}, Tiny("tiny"), Tiny("tiny"))


def test_late_register_is_refused(site: Site) -> None:
    manager = discover({}, Tiny("early"))
    with pytest.raises(PluginError, match=r"plugin 'late' comes too late.*plugins="):
        manager.register(Tiny("late"))
    assert [row.name for row in manager.rows] == ["early"]


def test_open_registry_binds_nothing() -> None:
    manager = PluginManager()
    manager.register(Tiny("tiny"))
    with pytest.raises(PluginError, match=r"still open.*PluginManager.discover"):
        manager.bind(manager.detect(Source()))


# Detection


def test_highest_confidence_wins(site: Site) -> None:
    manager = discover({}, Tiny("generic", 50), Tiny("exact", 100), Tiny("silent", 0))
    assert manager.detect(Source()).name == "exact"


def test_a_tie_names_both_and_force_decides(site: Site) -> None:
    manager = discover({}, Tiny("one"), Tiny("two"))
    with pytest.raises(PluginError, match=r"'one' and 'two'.*confidence 100; .*--plugin one or --plugin two") as caught:
        manager.detect(Source())
    assert "/models/tiny" in str(caught.value)
    assert manager.detect(Source(), force="two").name == "two"


def test_force_overrides_confidence_and_silence(site: Site) -> None:
    manager = discover({}, Tiny("exact"), Tiny("silent", 0))
    owner = manager.detect(Source(), force="silent")
    assert owner.name == "silent"
    assert owner.detection == Detection("TinyForCausalLM", 1, "claimed by nobody, forced")


def test_force_of_no_plugin_or_of_a_wrapper(site: Site) -> None:
    manager = discover({}, Tiny("tiny"), Recorder())
    with pytest.raises(PluginError, match="there is no plugin 'tinny'; those that work: tiny"):
        manager.detect(Source(), force="tinny")
    with pytest.raises(PluginError, match="'recorder' wraps models of other plugins"):
        manager.detect(Source(), force="recorder")


@pytest.mark.parametrize(
    ("source", "distribution"),
    [
        (Source(("LlamaForCausalLM",)), "zoo-llama"),
        (Source(("deepseek2",), "gguf"), "zoo-deepseek"),
        (Source(("Unheard", "Gemma3ForConditionalGeneration")), "zoo-gemma"),
    ],
)
def test_nobody_knows_it_but_a_distribution_would(site: Site, source: Source, distribution: str) -> None:
    with pytest.raises(PluginError) as caught:
        discover({}, Tiny("silent", 0)).detect(source)
    assert str(caught.value) == (
        f"no plugin knows /models/tiny ({', '.join(source.architectures)}, {source.format}); pip install {distribution}"
    )


def test_nobody_knows_it_at_all(site: Site) -> None:
    with pytest.raises(PluginError, match=r"no plugin knows /models/tiny \(Unheard, gguf\); install a plugin"):
        discover({}, Tiny("silent", 0)).detect(Source(("Unheard",), "gguf"))
    with pytest.raises(PluginError, match=r"\(no architecture named, safetensors\)"):
        discover({}, Tiny("silent", 0)).detect(Source(()))
    with pytest.raises(PluginError, match=r"no plugin is installed: .*pip install zoo-llama"):
        discover().detect(Source(("Unheard",), "gguf"))


def test_the_distribution_that_would_know_it_is_there(site: Site) -> None:
    site.install("qwen")
    qwen = Source(("Qwen3ForCausalLM",))
    with pytest.raises(PluginError, match=r"zoo-qwen 1\.2 is installed and does not claim it: pip install -U zoo-qwen"):
        discover().detect(qwen)
    site.install("other")
    with pytest.raises(PluginError, match="zoo-qwen is installed, but ZOO_PLUGINS leaves it out: add qwen"):
        discover({"ZOO_PLUGINS": "other"}).detect(qwen)


def test_the_distribution_that_would_know_it_is_broken(site: Site) -> None:
    site.install("qwen", "raise ImportError('half installed')")
    with pytest.raises(PluginError, match=r"half installed.*pip install --force-reinstall zoo-qwen"):
        discover().detect(Source(("qwen3",), "gguf"))


def test_refusals_are_errors_unless_somebody_runs_it(site: Site) -> None:
    elsewhere = Tiny("llama", instead="zoo-mistral")
    with pytest.raises(PluginError, match=r"'llama' recognises .* but zoo-mistral runs it; pip install zoo-mistral"):
        discover({}, elsewhere).detect(Source())
    with pytest.raises(PluginError, match="but zoo-mistral runs it"):
        discover({}, elsewhere).detect(Source(), force="llama")
    never = Tiny("old", refuse="its attention was never published")
    with pytest.raises(
        PluginError, match=r"'old' recognises .* but does not run it: its attention was never published"
    ):
        discover({}, never).detect(Source())
    assert discover({}, elsewhere, never, Tiny("real", 50)).detect(Source()).name == "real"


class Failing(Tiny):
    @hookimpl
    def detect(self, source: Source) -> Any:
        raise KeyError("general.architecture")


def test_a_plugin_that_fails_to_look_is_named(site: Site) -> None:
    manager = discover({}, Tiny("tiny"), Failing("failing"))
    with pytest.raises(PluginError, match="plugin 'failing' failed while looking at /models/tiny: KeyError") as caught:
        manager.detect(Source())
    assert isinstance(caught.value.__cause__, KeyError)
    assert manager.detect(Source(), force="tiny").name == "tiny"


def test_a_plugin_that_answers_nonsense_is_named(site: Site) -> None:
    plugin = Tiny("tiny")
    plugin.answer = True
    with pytest.raises(PluginError, match=r"plugin 'tiny': detect returned \[True\]; return a Detection or None"):
        discover({}, plugin).detect(Source())


def test_known_architectures_name_planned_distributions_only() -> None:
    planned = {"zoo-llama", "zoo-deepseek", "zoo-mistral", "zoo-qwen", "zoo-phi", "zoo-gemma"}
    assert set(KNOWN_ARCHITECTURES.values()) == planned


def test_known_architectures_are_spelt_as_transformers_and_gguf_spell_them() -> None:
    import gguf
    from transformers.models.auto import modeling_auto as auto

    spelt = set(gguf.MODEL_ARCH_NAMES.values())
    spelt.update(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    spelt.update(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    spelt.update(auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.values())
    by_checkpoints_only = {"PhiMoEForCausalLM", "Phi4MMForCausalLM"}
    newer_than_the_gguf_package = {"deepseek32", "deepseek4"}
    layouts = {"params.json"}
    assert set(KNOWN_ARCHITECTURES) - spelt == by_checkpoints_only | newer_than_the_gguf_package | layouts


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"architecture": ""}, "without an architecture"),
        ({"architecture": "x", "confidence": 0}, "confidence 0; use 1 to 100"),
        ({"architecture": "x", "confidence": 101}, "confidence 101"),
        ({"architecture": "x", "instead": "zoo-y", "refuse": "no"}, "both instead='zoo-y' and refuse='no'"),
    ],
)
def test_bad_detection(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(PluginError, match=error):
        Detection(**arguments)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        *[("context", value, "use an integer from 1 to 1099511627776") for value in (0, "10", 1.5, True, 1 << 41)],
        *[("threads", value, "use an integer from 1 to 1024") for value in (-1, "2", 20000)],
        *[(name, None, "use the name as text") for name in ("device", "dtype", "cache_dtype")],
        ("device", 0, "use the name as text"),
    ],
)
def test_bad_load_options(name: str, value: Any, remedy: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{name} is {value!r}; {remedy}")):
        LoadOptions(**{name: value})


# Calls


def test_only_the_owner_answers(site: Site) -> None:
    manager = discover({}, Tiny("one", 50), Tiny("two"), Tiny("three", 50))
    bound = manager.bind(manager.detect(Source()))
    model = bound.load(Source(), LoadOptions(context=7))
    cache: list[str] = []
    assert bound.name == "two"
    assert model == {"owner": "two", "context": 7}
    assert bound.forward(model, "batch", cache) == ("two", 7, "batch", cache)
    assert bound.eos(model) == {7}
    assert bound.vocab(model) == 70
    bound.reset_cache(model, cache)
    assert cache == ["two"], "reset_cache answers None, so nothing but the subset keeps the others out"


def test_two_models_of_one_plugin_and_two_owners_side_by_side(site: Site) -> None:
    manager = discover({}, Tiny("one"), Tiny("two"))
    one, two = (manager.bind(manager.detect(Source(), force=name)) for name in ("one", "two"))
    small, large = (one.load(Source(), LoadOptions(context=context)) for context in (1, 2))
    other = two.load(Source(), LoadOptions(context=3))
    assert [one.forward(small, 0, 0)[:2], one.forward(large, 0, 0)[:2]] == [("one", 1), ("one", 2)]
    assert two.forward(other, 0, 0)[:2] == ("two", 3)
    assert [one.vocab(small), one.vocab(large), two.vocab(other)] == [10, 20, 30]


def test_a_wrapper_sees_every_forward_of_every_owner(site: Site) -> None:
    recorder = Recorder()
    manager = discover({}, Tiny("one"), recorder, Tiny("two"))
    for name in ("one", "two"):
        bound = manager.bind(manager.detect(Source(), force=name))
        model = bound.load(Source(), LoadOptions(context=1))
        for step in range(3):
            assert bound.forward(model, step, None) == (name, 1, step, None, "wrapped")
    assert [(owner, batch) for owner, batch, _ in recorder.seen] == [
        *(("one", step) for step in range(3)),
        *(("two", step) for step in range(3)),
    ]


def test_a_wrapper_sees_a_failure_of_the_owner(site: Site) -> None:
    seen: list[str] = []

    class Failing(Tiny):
        @hookimpl
        def forward(self, model: Any, batch: Any, cache: Any) -> Any:
            raise MemoryError("step")

    class Watcher:
        @hookimpl(wrapper=True)
        def forward(self, batch: Any) -> Any:
            try:
                return (yield)
            except MemoryError:
                seen.append(batch)
                raise

    manager = discover({}, Failing("tiny"), Watcher())
    bound = manager.bind(manager.detect(Source()))
    with pytest.raises(MemoryError, match="step"):
        bound.forward({}, "batch", None)
    assert seen == ["batch"]


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook not in ("detect", "reset_cache")])
def test_an_answer_of_none_is_an_error(site: Site, hook: str) -> None:
    class Forgetful:
        @hookimpl(wrapper=True, specname=hook)
        def forget(self) -> Any:
            yield

    manager = discover({}, Tiny("tiny"), Forgetful())
    bound = manager.bind(manager.detect(Source()))
    arguments = {
        "load": (Source(), LoadOptions()),
        "forward": ({"context": 1}, None, None),
        "eos": ({"context": 1},),
        "vocab": ({"context": 1},),
    }[hook]
    with pytest.raises(PluginError, match=f"hook {hook} of plugin 'tiny' returned None"):
        getattr(bound, hook)(*arguments)


def test_a_wrapper_of_detect_must_return_the_list(site: Site) -> None:
    class Forgetful:
        @hookimpl(wrapper=True)
        def detect(self) -> Any:
            yield

    with pytest.raises(PluginError, match="returns the list that it received"):
        discover({}, Tiny("tiny"), Forgetful()).detect(Source())


def test_rows_and_owners_are_frozen(site: Site) -> None:
    manager = discover({}, Tiny("tiny"))
    with pytest.raises(FrozenInstanceError):
        manager.rows[0].name = "other"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        manager.detect(Source()).name = "other"  # type: ignore[misc]


# zoo plugins


def run_command(*arguments: str) -> str:
    result = CliRunner().invoke(plugins_command, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_zoo_plugins_prints_an_aligned_table_when_piped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_PLUGINS", raising=False)
    site.install("good")
    site.install("bad", "raise RuntimeError('no luck')")
    lines = run_command().splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["name", "version", "distribution", "architectures", "formats"],
        ["bad", "1.2", "zoo-bad", "-", "-"],
    ]
    assert lines[2].startswith("  broken: ")
    assert "RuntimeError: no luck" in lines[2]
    assert lines[3].split() == ["good", "1.2", "zoo-good", "Good", "gguf"]
    assert lines[0].index("version") == lines[3].index("1.2")


def test_zoo_plugins_json(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_PLUGINS", raising=False)
    site.install("good")
    site.install("bad", "raise RuntimeError('no luck')")
    printed = json.loads(run_command("--json"))
    assert printed["hook_api"] == 1
    bad, good = printed["plugins"]
    assert good == {
        "name": "good",
        "distribution": "zoo-good",
        "version": "1.2",
        "architectures": ["Good"],
        "formats": ["gguf"],
        "error": None,
    }
    assert "RuntimeError: no luck" in bad["error"]


def test_zoo_plugins_without_any(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_PLUGINS", raising=False)
    assert run_command() == "No plugin is installed. For Llama models: pip install zoo-llama\n"


def test_zoo_plugins_on_a_terminal_shows_errors_below_the_table(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_PLUGINS", raising=False)
    monkeypatch.setattr("zoo.cli.plugins._on_terminal", lambda: True)
    site.install("good")
    site.install("bad", "raise RuntimeError('[no] luck')")
    text = run_command()
    assert "zoo-good" in text
    assert "bad is broken" in text
    assert "[no] luck" in text, "an error is text, not markup"


# What a fresh interpreter imports

FRESH = {
    "import zoo.plugin": "import zoo.plugin",
    "every lazy-free name": "from zoo.plugin import ArchitecturePlugin, Claim, ModelSource, LoadOptions, hookimpl",
    "discovery": "from zoo.plugin.manager import PluginManager; from zoo.settings import Settings; "
    "print(PluginManager.discover(Settings.from_env()).rows)",
    "zoo --help": "sys.argv = ['zoo', '--help']; from zoo.cli.main import main; main()",
    "zoo plugins": "sys.argv = ['zoo', 'plugins']; from zoo.cli.main import main; main()",
    "zoo plugins --json": "sys.argv = ['zoo', 'plugins', '--json']; from zoo.cli.main import main; main()",
}


@pytest.mark.parametrize("code", FRESH.values(), ids=FRESH)
def test_no_torch_in_a_fresh_interpreter(code: str) -> None:
    program = (
        "import sys\n"
        "def report():\n"
        "    print('IMPORTED', sorted({'torch', 'transformers', 'numpy.testing'} & set(sys.modules)))\n"
        "try:\n"
        f"    {code}\n"
        "except SystemExit as error:\n"
        "    assert not error.code, error.code\n"
        "report()\n"
    )
    environ = {key: value for key, value in os.environ.items() if key != "ZOO_PLUGINS"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "IMPORTED []"


def test_batch_is_found_when_it_is_asked_for() -> None:
    import zoo.batch
    import zoo.plugin

    assert zoo.plugin.Batch is zoo.batch.Batch
    assert set(zoo.plugin.__all__) <= {name for name in zoo.plugin.__all__ if getattr(zoo.plugin, name) is not None}
    with pytest.raises(AttributeError, match="no attribute 'Batches'"):
        zoo.plugin.Batches  # noqa: B018
