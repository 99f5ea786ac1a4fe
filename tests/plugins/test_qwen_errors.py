"""Qwen files and configurations that are wrong: each is refused by one error that names file, key or tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from oracle.gguf_writer import Contents, write
from oracle.qwen_checkpoints import YARN, save_qwen
from oracle.qwen_gguf import qwen_contents
from zoo import LLM
from zoo.errors import ConfigError, PluginError, WeightError, ZooError

Made = Callable[[str], tuple[Path, PreTrainedModel]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    known: dict[str, tuple[Path, PreTrainedModel]] = {}

    def make(variant: str) -> tuple[Path, PreTrainedModel]:
        if variant not in known:
            path = tmp_path_factory.mktemp(variant.replace(" ", "-"))
            known[variant] = path, save_qwen(path, variant, num_hidden_layers=2)
        return known[variant]

    return make


# --- config.json ---

_SLIDING = {"use_sliding_window": True, "layer_types": None}

HF_ERRORS: dict[str, tuple[str, dict[str, Any], type[ZooError], str]] = {
    "activation": ("qwen2", {"hidden_act": "gelu"}, ConfigError, "hidden_act is 'gelu'"),
    "kv heads": ("qwen2", {"num_key_value_heads": 3}, ConfigError, "num_key_value_heads is 3"),
    "heads 0": ("qwen2", {"num_attention_heads": 0}, ConfigError, "num_attention_heads is 0"),
    "layers text": ("qwen2", {"num_hidden_layers": "2"}, ConfigError, "num_hidden_layers is '2'"),
    "layers 10^9": ("qwen2", {"num_hidden_layers": 10**9}, ConfigError, "num_hidden_layers is 1000000000"),
    "hidden_size absent": ("qwen2", {"hidden_size": None}, ConfigError, "hidden_size is missing"),
    "intermediate_size absent": ("qwen2", {"intermediate_size": None}, ConfigError, "intermediate_size is missing"),
    "head_dim 0": ("qwen3", {"head_dim": 0}, ConfigError, "head_dim is 0"),
    "head_dim": ("qwen3", {"head_dim": 64}, WeightError, r"self_attn\.\w+\.weight"),
    "head_dim left out": ("qwen3", {"head_dim": None}, WeightError, r"self_attn\.\w+\.weight"),
    "eps": ("qwen3", {"rms_norm_eps": -1}, ConfigError, "rms_norm_eps is -1"),
    "vocab_size": ("qwen3", {"vocab_size": 321}, WeightError, r"(embed_tokens|lm_head)\.weight needs \[321, 64\]"),
    "bias declared": ("qwen3", {"attention_bias": True}, WeightError, r"self_attn\.\w_proj\.bias"),
    "bias a number": ("qwen3", {"attention_bias": 1}, ConfigError, "attention_bias is 1"),
    "tied text": ("qwen3", {"tie_word_embeddings": "no"}, ConfigError, "tie_word_embeddings is 'no'"),
    "eos text": ("qwen3", {"eos_token_id": "<|im_end|>"}, ConfigError, "eos_token_id is "),
    "window flag": ("qwen2", {"use_sliding_window": "false"}, ConfigError, "use_sliding_window is 'false'"),
    "window 0": (
        "qwen2", {**_SLIDING, "sliding_window": 0, "max_window_layers": 0}, ConfigError, "sliding_window is 0"
    ),
    "window absent": (
        "qwen2", {**_SLIDING, "sliding_window": None, "max_window_layers": 0}, ConfigError, "sliding_window is missing"
    ),
    "window layers": ("qwen2", {**_SLIDING, "max_window_layers": -1}, ConfigError, "max_window_layers is -1"),
    "layer types too few": ("qwen2", {"layer_types": ["full_attention"]}, ConfigError, "layer_types is "),
    "layer type unknown": (
        "qwen2", {"layer_types": ["full_attention", "linear_attention"]}, ConfigError, "layer_types .*linear_attention"
    ),
    "layer types and flag": (
        "qwen2", {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": False},
        ConfigError, "use_sliding_window is false",
    ),
    "rope type": ("qwen3", {"rope_parameters": {**YARN, "rope_type": "dynamic"}}, ConfigError, "'dynamic'"),
    "yarn factor": ("qwen3", {"rope_parameters": {**YARN, "factor": 0}}, ConfigError, r"rope_scaling\.factor is 0"),
    "experts absent": (
        "qwen2 moe", {"num_experts": None, "num_local_experts": None}, ConfigError, "num_experts is missing"
    ),
    "experts text": ("qwen2 moe", {"num_experts": "12"}, ConfigError, "num_experts is '12'"),
    "too few experts": ("qwen2 moe", {"num_experts": 11}, WeightError, r"experts\.11\..*is expert 11"),
    "too many experts": ("qwen2 moe", {"num_experts": 13}, WeightError, r"(lacks 1 of 13 experts|\[13, 64\])"),
    "experts per token absent": (
        "qwen2 moe", {"num_experts_per_tok": None}, ConfigError, "num_experts_per_tok is missing"
    ),
    "more experts used than there are": ("qwen2 moe", {"num_experts_per_tok": 13}, ConfigError, "13 of 12 experts"),
    "norm_topk_prob": ("qwen2 moe", {"norm_topk_prob": "yes"}, ConfigError, "norm_topk_prob is 'yes'"),
    "sparse step": ("qwen2 moe", {"decoder_sparse_step": 0}, ConfigError, "decoder_sparse_step is 0"),
    "another sparse step": ("qwen2 moe", {"decoder_sparse_step": 2}, WeightError, r"layers\.0\.mlp\."),
    "dense layers": ("qwen2 moe", {"mlp_only_layers": 1}, ConfigError, "mlp_only_layers is 1"),
    "dense layers of text": ("qwen2 moe", {"mlp_only_layers": ["1"]}, ConfigError, "mlp_only_layers is "),
    "another dense layer": ("qwen2 moe", {"mlp_only_layers": [1]}, WeightError, r"layers\.1\.mlp\."),
    "expert width": ("qwen2 moe", {"moe_intermediate_size": 64}, WeightError, r"experts\.0\.\w+_proj\.weight"),
    "shared width": (
        "qwen2 moe", {"shared_expert_intermediate_size": 96}, WeightError, r"shared_expert\.\w+_proj\.weight"
    ),
    "no shared expert": (
        "qwen2 moe", {"shared_expert_intermediate_size": 0}, ConfigError, "shared_expert_intermediate_size is 0"
    ),
    "qkv bias": ("qwen2 moe", {"qkv_bias": False}, WeightError, r"self_attn\.\w_proj\.bias"),
    "no experts at all": ("qwen2 moe", {"num_experts": 0}, WeightError, r"layers\.0\.mlp\."),
}  # fmt: skip


@pytest.mark.parametrize("fault", HF_ERRORS)
def test_a_wrong_config_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    variant, changes, error, message = HF_ERRORS[fault]
    directory, _ = made(variant)
    config = {**json.loads((directory / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(directory / name)
    with pytest.raises(error, match=message) as caught:
        LLM.load(tmp_path, device="cpu")
    assert caught.value.remedy
    assert str(tmp_path) in str(caught.value)


TENSOR_ERRORS: dict[str, tuple[str, Callable[[dict[str, Tensor]], Any], str]] = {
    "bias lost": ("qwen2", lambda t: t.pop("model.layers.1.self_attn.k_proj.bias"), r"layers\.1\.\w+\.k_proj\.bias"),
    "norm lost": ("qwen3", lambda t: t.pop("model.layers.0.self_attn.q_norm.weight"), r"self_attn\.q_norm\.weight"),
    "expert lost": (
        "qwen2 moe", lambda t: t.pop("model.layers.1.mlp.experts.7.up_proj.weight"), r"lacks 1 of 12 experts.* is 7"
    ),
    "shared gate lost": (
        "qwen2 moe", lambda t: t.pop("model.layers.0.mlp.shared_expert_gate.weight"), r"shared_expert_gate\.weight"
    ),
    "router lost": ("qwen2 moe", lambda t: t.pop("model.layers.0.mlp.gate.weight"), r"mlp\.gate\.weight"),
    "one expert more": (
        "qwen2 moe",
        lambda t: t.update({"model.layers.0.mlp.experts.12.up_proj.weight": t["model.norm.weight"][None].clone()}),
        r"experts\.12\.up_proj\.weight is expert 12",
    ),
    "norm in a Qwen2": (
        "qwen2",
        lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": t["model.norm.weight"].clone()}),
        r"self_attn\.q_norm\.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", TENSOR_ERRORS)
def test_wrong_safetensors_are_refused(made: Made, tmp_path: Path, fault: str) -> None:
    variant, edit, message = TENSOR_ERRORS[fault]
    directory, _ = made(variant)
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).symlink_to(directory / name)
    with pytest.raises(WeightError, match=message) as caught:
        LLM.load(tmp_path, device="cpu")
    assert caught.value.remedy


# --- GGUF ---

Edit = Callable[[Contents], Any]


def key(name: str, value: Any) -> Edit:
    return lambda contents: contents.keys.update({f"{contents.architecture}.{name}": value})


def without_key(name: str) -> Edit:
    return lambda contents: contents.keys.pop(f"{contents.architecture}.{name}")


def tensor(name: str, *shape: int) -> Edit:
    return lambda contents: contents.tensors.update({name: np.ones(shape, np.float32)})


def without(name: str) -> Edit:
    return lambda contents: contents.tensors.pop(name)


GGUF_ERRORS: dict[str, tuple[str, Edit, type[ZooError] | tuple[type[ZooError], ...], str]] = {
    "block_count 0": ("qwen2", key("block_count", 0), ConfigError, r"qwen2\.block_count is 0"),
    "block_count short": ("qwen2", key("block_count", 1), WeightError, r"blk\.1\."),
    "block_count long": ("qwen2", key("block_count", 3), WeightError, r"layers\.2\."),
    "block_count absent": ("qwen3", without_key("block_count"), ConfigError, r"qwen3\.block_count is missing"),
    "embedding_length": ("qwen2", key("embedding_length", 128), WeightError, r"\.weight has shape"),
    "feed_forward_length absent": (
        "qwen2", without_key("feed_forward_length"), ConfigError, r"qwen2\.feed_forward_length is missing"
    ),
    "head_count_kv": ("qwen2", key("attention.head_count_kv", 3), ConfigError, r"attention\.head_count_kv is 3"),
    "key_length absent": ("qwen3", without_key("attention.key_length"), WeightError, r"attn_\w+\.weight"),
    "partial rotation": ("qwen3", key("rope.dimension_count", 8), ConfigError, r"qwen3\.rope\.dimension_count"),
    "eps absent": ("qwen3", without_key("attention.layer_norm_rms_epsilon"), ConfigError, "layer_norm_rms_epsilon"),
    "context 0": ("qwen3", key("context_length", 0), ConfigError, r"qwen3\.context_length is 0"),
    "rope type": ("qwen3", key("rope.scaling.type", "spiral"), ConfigError, "spiral"),
    "yarn without factor": ("qwen3", key("rope.scaling.type", "yarn"), ConfigError, r"rope\.scaling\.factor"),
    "embedding lost": ("qwen2", without("token_embd.weight"), ConfigError, r"token_embd\.weight"),
    "one bias lost": ("qwen2", without("blk.1.attn_v.bias"), WeightError, r"layers\.1\.self_attn\.v_proj\.bias"),
    "norm lost": ("qwen3", without("blk.1.attn_k_norm.weight"), WeightError, r"layers\.1\.self_attn\.k_norm\.weight"),
    "norm in a Qwen2": ("qwen2", tensor("blk.0.attn_q_norm.weight", 16), WeightError, r"blk\.0\.attn_q_norm\.weight"),
    "sinks": ("qwen3", tensor("blk.0.attn_sinks.weight", 4), WeightError, r"blk\.0\.attn_sinks\.weight"),
    "a router in a Qwen3": (
        "qwen3", tensor("blk.1.ffn_gate_inp.weight", 4, 64), ConfigError, r"qwen3 has no experts.*blk\.1\.ffn_gate_inp"
    ),
    "expert_count absent": ("qwen2 moe", without_key("expert_count"), ConfigError, r"moe\.expert_count is missing"),
    "expert_count": ("qwen2 moe", key("expert_count", 11), WeightError, r"\[12, "),
    "expert_used_count absent": (
        "qwen2 moe", without_key("expert_used_count"), ConfigError, r"qwen2moe\.expert_used_count is missing"
    ),
    "expert_used_count": ("qwen2 moe", key("expert_used_count", 13), ConfigError, "13 of 12 experts"),
    "router lost": ("qwen2 moe", without("blk.1.ffn_gate_inp.weight"), (ConfigError, WeightError), r"blk\.1\.|mlp"),
    "experts lost": ("qwen2 moe", without("blk.1.ffn_up_exps.weight"), WeightError, r"\.1\.mlp\.experts\.up_proj"),
    "shared gate lost": (
        "qwen2 moe", without("blk.0.ffn_gate_inp_shexp.weight"), WeightError, r"shared_expert_gate\.weight \[1, 64\]"
    ),
    "shared gate of a wrong size": (
        "qwen2 moe", tensor("blk.0.ffn_gate_inp_shexp.weight", 63), WeightError, r"gate_inp_shexp\.weight.*\[1, 63\]"
    ),
    "a shared expert in one layer only": (
        "qwen2 moe", without("blk.1.ffn_down_shexp.weight"), WeightError, r"layers\.1\.mlp\.shared_expert\.down_proj"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", GGUF_ERRORS)
def test_a_wrong_gguf_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    variant, edit, error, message = GGUF_ERRORS[fault]
    contents = qwen_contents(made(variant)[1])
    edit(contents)
    (path,) = write(tmp_path / "wrong.gguf", contents)
    with pytest.raises(error, match=message) as caught:
        LLM.load(path, device="cpu")
    assert caught.value.remedy
    assert "wrong.gguf" in str(caught.value)


# --- What the family has and this plugin does not run ---


@pytest.mark.parametrize(
    "name",
    [
        "Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
    ],
)  # fmt: skip
def test_gated_delta_net_is_recognised_and_refused(made: Made, tmp_path: Path, name: str) -> None:
    directory, _ = made("qwen2")
    config = {**json.loads((directory / "config.json").read_text()), "architectures": [name]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "model.safetensors"):
        (tmp_path / file).symlink_to(directory / file)
    with pytest.raises(PluginError, match=rf"{name}(.|\n)*Gated DeltaNet, which is not implemented"):
        LLM.load(tmp_path, device="cpu")


@pytest.mark.parametrize("name", ["qwen3next", "qwen35", "qwen35moe"])
def test_gated_delta_net_in_gguf(tmp_path: Path, name: str) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", name)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(PluginError, match=rf"{name}(.|\n)*Gated DeltaNet, which is not implemented"):
        LLM.load(tmp_path / "model.gguf", device="cpu")
