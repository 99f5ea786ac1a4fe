"""The six plugins side by side: each is listed, owns its models in both formats, and answers from them alike."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from oracle.checkpoints import llama_config, save_checkpoint
from oracle.deepseek_checkpoints import save_deepseek
from oracle.deepseek_gguf import deepseek_contents
from oracle.gemma_checkpoints import save_gemma
from oracle.gemma_gguf import gemma_contents
from oracle.gguf_writer import llama_contents, write
from oracle.mistral_checkpoints import mistral_config
from oracle.mistral_gguf import mistral_contents
from oracle.phi_checkpoints import phi3_config
from oracle.phi_gguf import phi_contents
from oracle.qwen_checkpoints import save_qwen
from oracle.qwen_gguf import qwen_contents
from zoo.errors import ZooError
from zoo.llm import recommended_sampling
from zoo.plugin.manager import PluginManager
from zoo.settings import Settings
from zoo.source import ModelSource

Save = Callable[[Path], Any]
FAMILIES: dict[str, tuple[Save, Callable[[Any], Any], str]] = {
    "deepseek": (lambda path: save_deepseek(path, "v3"), deepseek_contents, "DeepseekV3ForCausalLM"),
    "gemma": (lambda path: save_gemma(path, "gemma3"), gemma_contents, "Gemma3ForCausalLM"),
    "llama": (lambda path: save_checkpoint(path, llama_config()), llama_contents, "LlamaForCausalLM"),
    "mistral": (
        lambda path: save_checkpoint(path, mistral_config("Mixtral 8x7B")),
        mistral_contents,
        "MixtralForCausalLM",
    ),
    "phi": (lambda path: save_checkpoint(path, phi3_config()), phi_contents, "Phi3ForCausalLM"),
    "qwen": (lambda path: save_qwen(path, "qwen3"), qwen_contents, "Qwen3ForCausalLM"),
}


def test_all_six_are_listed(call: Any) -> None:
    rows = json.loads(call("plugins", "--json").out)["plugins"]
    found = {row["name"]: row for row in rows if row["distribution"].startswith("zoo-")}
    assert set(FAMILIES) <= set(found)
    for name in FAMILIES:
        assert found[name]["distribution"] == f"zoo-{name}"
        assert found[name]["error"] is None
        assert found[name]["formats"] == ["safetensors", "gguf"]


WRONG = ("x", -1, 1.5, [1, "a"], float("nan"), 10**12)


def keys_of(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_value_of_any_key_is_worse_than_an_error(family: str, tmp_path: Path) -> None:
    """Whatever a key of config.json or of GGUF metadata holds: a model is built, or a ZooError is raised."""
    save, contents, _ = FAMILIES[family]
    (gguf,) = write(tmp_path / "model.gguf", contents(save(tmp_path / "model")))
    manager = PluginManager.discover(Settings.from_env())
    refused = 0
    for path in (tmp_path / "model", gguf):
        with ModelSource.open(path) as source:
            keys = [*keys_of(source.config), *(key for key in source.metadata if not key.startswith("tokenizer."))]
        for key, value in itertools.product(keys, WRONG):
            try:
                with ModelSource.open(path, {key: value}) as source:
                    recommended_sampling(source, {})
                    manager.bind(manager.detect(source)).plugin.build(source).cache_spec()
            except ZooError:
                refused += 1
            except BaseException as error:
                raise AssertionError(f"{path.name}: {key} = {value!r}") from error
    assert refused > 100


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("reference_kernels")
def test_each_owns_and_runs_both_formats(family: str, tmp_path: Path, call: Any) -> None:
    save, contents, architecture = FAMILIES[family]
    directory = tmp_path / "model"
    model = save(directory)
    (gguf,) = write(tmp_path / "model.gguf", contents(model))
    answers = []
    for path, form in ((directory, "safetensors"), (gguf, "gguf")):
        report = json.loads(call("inspect", "--model-path", path, "--json").out)
        assert (report["plugin"], report["distribution"], report["format"]) == (family, f"zoo-{family}", form)
        assert (report["problems"], report["fits"]) == ([], True)
        assert form == "gguf" or report["architectures"] == [architecture]
        asked = (
            "run",
            "--raw",
            "the theory",
            "--model-path",
            path,
            "--json",
            "--temperature",
            "0",
            "--max-tokens",
            "8",
        )
        answers.append(json.loads(call(*asked, "--dtype", "float32").out))
    assert answers[0]["model"]["plugin"] == family
    assert len(answers[0]["token_ids"]) > 0
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
