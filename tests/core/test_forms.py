"""Forms of checkpoints: their sizes are those that were published, and synthetic weights are what a form says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.errors import UsageError, WeightError
from zoo.plugin.manager import PluginManager
from zoo.quant.experts import ExpertWeights
from zoo.quant.tensor import QuantTensor
from zoo.settings import Settings
from zoo.source import ModelSource
from zoo.weights.forms import FORMS, declared, form, form_bytes, form_types
from zoo.weights.synthetic import synthesize

# Bytes of files on the Hugging Face hub, tokenizer and metadata included: GB.
PUBLISHED = [
    ("llama-8b", "q4_k_m", 4.92),
    ("llama-8b", "q5_k_m", 5.73),
    ("llama-8b", "q6_k", 6.60),
    ("llama-8b", "q8_0", 8.54),
    ("llama-8b", "iq4_xs", 4.45),
    ("llama-8b", "bf16", 16.07),
    ("deepseek-v2-lite", "q4_k_m", 10.36),
    ("deepseek-r1", "q4_k_m", 404.5),
    ("deepseek-r1", "q8_0", 713.0),
]


def build(name: str, **changes: Any) -> Any:
    manager = PluginManager.discover(Settings.from_env())
    source = ModelSource.from_config(name, {**manager.published()[name], **changes})
    return manager.bind(manager.detect(source)).plugin.build(source)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "form_name", "gigabytes"), PUBLISHED)
def test_sizes_are_the_published_ones(name: str, form_name: str, gigabytes: float) -> None:
    assert form_bytes(build(name), FORMS[form_name]) / 1e9 == pytest.approx(gigabytes, rel=0.004)


def small(**changes: Any) -> Any:
    """A DeepSeek of real proportions: rows of 256 and rows that are none, a layer of each kind."""
    sizes = {
        "hidden_size": 256, "intermediate_size": 320, "moe_intermediate_size": 64, "num_attention_heads": 2,
        "num_hidden_layers": 3, "n_routed_experts": 8, "vocab_size": 500, "num_experts_per_tok": 2,
    }  # fmt: skip
    return build("deepseek-v2-lite", **{**sizes, **changes})


@pytest.mark.parametrize("name", FORMS)
def test_synthetic_weights_have_the_types_and_bytes_of_their_form(name: str) -> None:
    model = small()
    types, shapes, expected = form_types(model, FORMS[name]), declared(model), form_bytes(model, FORMS[name])
    synthesize(model, FORMS[name], torch.device("cpu"), torch.float32)
    total = 0
    for target, kind in types.items():
        path, _, attribute = target.rpartition(".")
        value = getattr(model.get_submodule(path), attribute)
        if isinstance(value, ExpertWeights):
            value = value.stacked
        total += value.nbytes
        assert tuple(value.shape) == shapes[target]
        if isinstance(value, QuantTensor):
            assert value.type == kind
            value = value.dequantize()
        assert value.isfinite().all(), target
        if math.prod(shapes[target]) > 4096 and "norm" not in target:
            assert 0.005 < value.float().std() < 0.08, f"{target} {kind}"
    assert total == expected
    kinds = set(types.values())
    if name == "q4_k_m":
        assert {"F32", "Q4_K", "Q6_K", "Q5_0", "Q8_0"} <= kinds  # rows of 320 and 64 are no blocks of 256
    if name == "iq4_xs":
        assert {"F32", "IQ4_XS", "IQ4_NL", "Q5_K", "Q6_K"} <= kinds
    if name == "iq1_s":
        assert types["model.layers.1.mlp.experts.gate_proj"] == "IQ1_S"
        assert types["model.layers.1.self_attn.q_proj.weight"] == "Q4_K"
    if name == "fp8":
        assert types["model.layers.1.mlp.gate.weight"] == types["lm_head.weight"] == "BF16"


def test_a_weight_depends_on_its_name_and_the_seed_alone() -> None:
    first, deeper, other = (
        synthesize(small(num_hidden_layers=layers), FORMS["q8_0"], torch.device("cpu"), torch.float32, seed)
        for layers, seed in ((2, 0), (3, 0), (2, 1))
    )
    weights = [model.model.layers[1].self_attn.q_proj.weight.parts["data"] for model in (first, deeper, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_unknown_form() -> None:
    with pytest.raises(UsageError, match=r"'q3_x' is unknown.*q4_k_m"):
        form("q3_x")


def test_a_configuration_alone_has_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    for path in (tmp_path, tmp_path / "config.json"):
        source = ModelSource.from_config(path)
        assert source.architectures == ("LlamaForCausalLM",)
        assert (dict(source.tensors), source.files, source.has_weights) == ({}, (), False)
        with pytest.raises(WeightError, match="no tensor x"):
            source.read("x")
