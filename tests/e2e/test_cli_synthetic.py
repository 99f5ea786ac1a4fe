"""Models without weights: `zoo inspect` on a configuration, `zoo bench --synthetic`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oracle.checkpoints import llama_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config.json of a tiny Llama, written by transformers, with nothing beside it."""
    path = tmp_path / "alone"
    path.mkdir()
    config = llama_config()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    return path


def bench(call: Any, *args: str | Path) -> Any:
    return call("bench", "--prompt-tokens", "9", "--gen-tokens", "3", "--repeat", "1", *args)


@pytest.mark.parametrize("form", ["bf16", "q4_k_m", "fp8", "iq1_s"])
def test_bench_measures_a_model_that_is_nowhere(call: Any, form: str) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 300, "n_routed_experts": 8,
             "moe_intermediate_size": 256}  # fmt: skip
    sets = [arg for key, value in sizes.items() for arg in ("--set", f"{key}={value}")]
    done = bench(call, "--synthetic", "deepseek-v2-lite", "--form", form, "--layers", "2", *sets, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["model"]["plugin"] == "deepseek"
    assert report["model"]["path"] == f"deepseek-v2-lite ({form})"
    assert report["decode_tok_s"] > 0
    assert report["load_s"] > 0
    assert report["peak_device_mb"] is None


def test_bench_takes_a_configuration(call: Any, config: Path) -> None:
    done = bench(call, "--synthetic", config, "--form", "q8_0")
    assert done.code == 0, done.err
    assert "llama" in done.out.splitlines()[0]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--synthetic", "gpt-5"], r"no installed plugin describes the model 'gpt-5'.*deepseek-r1.*llama-8b"),
        (["--synthetic", "llama-1b", "--form", "q9"], "form 'q9' is unknown"),
        (["--synthetic", "llama-1b", "--layers", "17"], "has 16 layers, not 17"),
        (["--synthetic", "llama-1b", "--model-path", "x"], "one of them"),
        ([], "bench needs a model"),
        (["--model-path", "x", "--layers", "1"], "--layers shapes a synthetic model"),
        (["--model-path", "x", "--form", "bf16"], "--form shapes a synthetic model"),
        (["--synthetic", "./nowhere"], "no config.json"),
        (["--synthetic", "llama-1b", "--set", "hidden_act=relu"], "hidden_act"),
    ],
)
def test_what_bench_refuses(call: Any, args: list[str], said: str) -> None:
    import re

    done = bench(call, *args)
    assert done.code in (1, 2)
    assert re.search(said, done.err.replace("\n", " ")), done.err
    assert done.out == ""


def test_inspect_tells_what_each_form_needs(call: Any, config: Path) -> None:
    for path in (config, config / "config.json"):
        done = call("inspect", "--model-path", path, "--json")
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert (report["plugin"], report["files"], report["problems"]) == ("llama", 0, [])
        assert report["forms"]["f32"] == {"bytes": report["parameters"] * 4, "fits": True}
        assert report["forms"]["q8_0"]["bytes"] < report["forms"]["bf16"]["bytes"]
        assert "without weights" in report["verdict"]
        text = call("inspect", "--model-path", path).out
        assert "as q4_k_m: " in text


def test_inspect_of_a_shape_that_is_impossible(call: Any, config: Path) -> None:
    report = json.loads(call("inspect", "--model-path", config, "--set", "num_hidden_layers=0", "--json").out)
    assert "num_hidden_layers is 0" in report["verdict"]
    assert report["forms"] is None


def test_an_incomplete_download_is_no_configuration(call: Any, config: Path) -> None:
    (config / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    done = call("inspect", "--model-path", config)
    assert done.code == 1
    assert "model-1.safetensors" in done.err
