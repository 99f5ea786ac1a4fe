"""Wrong DeepSeek files: each is refused with an error that names the file, what is wrong in it, and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oracle.deepseek_checkpoints import YARN, fp8_config, fp8_tensors, rewrite, save_deepseek, tensors_of
from oracle.deepseek_gguf import deepseek_contents
from oracle.gguf_writer import Contents, write
from plugins.deepseek_tools import Made, maker
from zoo import LLM
from zoo.errors import ConfigError, FormatError, WeightError, ZooError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return maker(tmp_path_factory)


def refused(path: Path, error: type[ZooError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        LLM.load(path, device="cpu")
    assert type(caught.value) is not ZooError
    assert caught.value.remedy
    assert path.name in str(caught.value)


# --- config.json ---

CONFIGS: dict[str, tuple[str, dict[str, Any], type[ZooError], str]] = {
    "groups do not divide": ("v3", {"n_group": 5}, ConfigError, "16 experts in 5 groups"),
    "groups do not divide, V2": ("v2", {"n_group": 7}, ConfigError, "32 experts in 7 groups"),
    "more groups used": ("v3", {"topk_group": 5}, ConfigError, "in 4 groups, of which 5 are used"),
    "too few in the groups": ("v2", {"topk_group": 1}, ConfigError, "of which 1 are used for 6 experts"),
    "groups of one": ("v3", {"n_group": 16, "topk_group": 8}, ConfigError, "16 groups of one expert each"),
    "no groups": ("v3", {"n_group": None}, ConfigError, "n_group is missing"),
    "groups 0": ("v3", {"n_group": 0}, ConfigError, "n_group is 0"),
    "more experts used": ("v2-lite", {"num_experts_per_tok": 17}, ConfigError, "17 of 16 experts are used"),
    "experts used text": ("v3", {"num_experts_per_tok": "3"}, ConfigError, "num_experts_per_tok is '3'"),
    "one expert fewer": ("v3", {"n_routed_experts": 12}, WeightError, r"experts\.1[2-5]\.|mlp\.gate"),
    "four experts more": ("v3", {"n_routed_experts": 20}, WeightError, r"mlp\.gate|lacks 4 of 20 experts"),
    "no experts": ("v3", {"n_routed_experts": None}, WeightError, r"layers\.2\.mlp\."),
    "shared experts": ("v3", {"n_shared_experts": 2}, WeightError, r"shared_experts\.\w+\.weight has shape"),
    "no shared experts": ("v3", {"n_shared_experts": None}, WeightError, r"nobody knows .*shared_experts"),
    "dense layers": ("v3", {"first_k_dense_replace": 3}, WeightError, r"layers\.2\.mlp"),
    "dense layers missing": ("v3", {"first_k_dense_replace": None}, ConfigError, "first_k_dense_replace is missing"),
    "moe_layer_freq": ("v3", {"moe_layer_freq": 2}, WeightError, r"layers\.3\.mlp"),
    "moe_layer_freq 0": ("v3", {"moe_layer_freq": 0}, ConfigError, "moe_layer_freq is 0"),
    "method": ("v2", {"topk_method": "random"}, ConfigError, "topk_method is 'random'"),
    "scoring": ("v3", {"scoring_func": "sqrtsoftplus"}, ConfigError, "scoring_func is 'sqrtsoftplus'"),
    "factor missing": ("v3", {"routed_scaling_factor": None}, ConfigError, "routed_scaling_factor is missing"),
    "factor -1": ("v2", {"routed_scaling_factor": -1.0}, ConfigError, "routed_scaling_factor is -1.0"),
    "normalising": ("v3", {"norm_topk_prob": "yes"}, ConfigError, "norm_topk_prob is 'yes'"),
    "activation": ("v3", {"hidden_act": "gelu"}, ConfigError, "hidden_act is 'gelu'"),
    "bias": ("v3", {"attention_bias": True}, ConfigError, "attention_bias is True"),
    "layers 10^9": ("v3", {"num_hidden_layers": 10**9}, ConfigError, "num_hidden_layers is 1000000000"),
    "layers fewer": ("v3", {"num_hidden_layers": 3}, WeightError, r"model\.layers\.3\."),
    "rank": ("v3", {"kv_lora_rank": 16}, WeightError, r"kv_a|kv_b"),
    "rank missing": ("v3", {"kv_lora_rank": None}, ConfigError, "kv_lora_rank is missing"),
    "rank of queries": ("v3", {"q_lora_rank": None}, WeightError, r"q_a_|q_proj"),
    "heads": ("v3", {"num_attention_heads": 8}, WeightError, r"self_attn\.\w+\.weight"),
    "nope": ("v3", {"qk_nope_head_dim": 20}, WeightError, r"self_attn\.\w+\.weight"),
    "values": ("v3", {"v_head_dim": 16}, WeightError, r"self_attn\.\w+\.weight"),
    "rope type": ("v3", {"rope_parameters": {**YARN, "rope_type": "spiral"}}, ConfigError, "'spiral'"),
    "yarn factor": ("v3", {"rope_parameters": {**YARN, "factor": 0}}, ConfigError, r"rope_scaling\.factor is 0"),
    "mscale": ("v3", {"rope_parameters": {**YARN, "mscale_all_dim": -1}}, ConfigError, "mscale_all_dim is -1"),
    "eps": ("v3", {"rms_norm_eps": 0}, ConfigError, "rms_norm_eps is 0"),
    "context": ("v3", {"max_position_embeddings": 0}, ConfigError, "max_position_embeddings is 0"),
    "top-k of V3.2": ("v3.2", {"index_topk": 0}, ConfigError, "index_topk is 0"),
}  # fmt: skip


@pytest.mark.parametrize("fault", CONFIGS)
def test_a_wrong_config_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    variant, changes, error, message = CONFIGS[fault]
    directory, _ = made(variant)
    config = {**json.loads((directory / "config.json").read_text()), **changes}
    config = {key: value for key, value in config.items() if key not in changes or value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(directory / name)
    refused(tmp_path, error, message)


# --- safetensors ---

Edit = Callable[[dict[str, Tensor]], Any]
EXPERT = "model.layers.2.mlp.experts.7.up_proj.weight"
KV_A = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
WEIGHTS: dict[str, tuple[Edit, str]] = {
    "an expert missing": (lambda t: t.pop(EXPERT), r"mlp\.experts\.up_proj lacks 1 of 16 experts, the first is 7"),
    "an expert too many": (
        lambda t: t.update({EXPERT.replace(".7.", ".16."): t[EXPERT].clone()}), r"experts\.16\..* is expert 16"
    ),
    "an expert of another size": (lambda t: t.update({EXPERT: torch.ones(31, 64)}), r"experts\.7\.up_proj.*\[31, 64\]"),
    "correction missing": (
        lambda t: t.pop("model.layers.2.mlp.gate.e_score_correction_bias"), r"gate\.e_score_correction_bias"
    ),
    "kv_b of another size": (
        lambda t: t.update({"model.layers.1.self_attn.kv_b_proj.weight": torch.ones(111, 32)}),
        r"kv_b_proj\.weight has shape \[111, 32\]",
    ),
    "head missing": (lambda t: t.pop("lm_head.weight"), r"lm_head\.weight"),
    "a layer after the last": (
        lambda t: t.update({"model.layers.4.input_layernorm.weight": torch.ones(64)}), r"layers\.4\.input_layernorm"
    ),
    "unknown": (lambda t: t.update({"model.layers.0.self_attn.sinks": torch.ones(4)}), r"self_attn\.sinks"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WEIGHTS)
def test_wrong_tensors_are_refused(made: Made, tmp_path: Path, fault: str) -> None:
    edit, message = WEIGHTS[fault]
    directory, _ = made("v3")
    tensors = tensors_of(directory)
    edit(tensors)
    rewrite(directory, tmp_path, tensors)
    refused(tmp_path, WeightError, message)


FP8: dict[str, tuple[Edit, str]] = {
    "scale missing": (lambda t: t.pop(f"{KV_A}_scale_inv"), rf"{KV_A} is F8_E4M3 but there is no {KV_A}_scale_inv"),
    "scale of an expert missing": (lambda t: t.pop(f"{EXPERT}_scale_inv"), rf"{EXPERT} is F8_E4M3 but there is no"),
    "scale of another size": (
        lambda t: t.update({f"{KV_A}_scale_inv": torch.ones(2, 4)}), rf"{KV_A}_scale_inv is F32 \[2, 4\]"
    ),
    "scale of another type": (
        lambda t: t.update({f"{KV_A}_scale_inv": t[f"{KV_A}_scale_inv"].half()}), rf"{KV_A}_scale_inv is F16"
    ),
    "scale without a weight": (
        lambda t: t.update({"model.norm.weight_scale_inv": torch.ones(1)}), r"model\.norm\.weight_scale_inv"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FP8)
def test_wrong_scales_are_refused(made: Made, tmp_path: Path, fault: str) -> None:
    edit, message = FP8[fault]
    directory, _ = made("v3")
    tensors, _ = fp8_tensors(tensors_of(directory), (16, 16))
    edit(tensors)
    rewrite(directory, tmp_path, tensors, **fp8_config((16, 16)))
    refused(tmp_path, WeightError, message)


def test_a_wrong_block_of_scales_is_refused(made: Made, tmp_path: Path) -> None:
    directory, _ = made("v3")
    tensors, _ = fp8_tensors(tensors_of(directory), (16, 16))
    for block, error in (([128, 0], ConfigError), ([16], ConfigError), ([128, 128], WeightError)):
        rewrite(directory, tmp_path, tensors, **fp8_config((16, 16)))
        config = json.loads((tmp_path / "config.json").read_text())
        config["quantization_config"]["weight_block_size"] = block
        (tmp_path / "config.json").write_text(json.dumps(config))
        refused(tmp_path, error, r"weight_block_size|scale_inv is F32 .*expected F32 \[\d, \d\] for blocks of")


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    save_deepseek(tmp_path, "v3", max_shard_size="300KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    shards[1].unlink()
    refused(tmp_path, FormatError, rf"1 of the files in model\.safetensors\.index\.json are missing: {shards[1].name}")


# --- GGUF ---

Change = Callable[[Contents], Any]


def key(name: str, value: Any) -> Change:
    return lambda contents: contents.keys.update({f"deepseek2.{name}": value})


def without_key(name: str) -> Change:
    return lambda contents: contents.keys.pop(f"deepseek2.{name}")


def without(*names: str) -> Change:
    return lambda contents: [contents.tensors.pop(name) for name in names]


def tensor(name: str, *shape: int) -> Change:
    return lambda contents: contents.tensors.update({name: np.ones(shape, np.float32)})


GGUFS: dict[str, tuple[Change, type[ZooError], str]] = {
    "no kv_b at all": (
        without("blk.0.attn_k_b.weight", "blk.0.attn_v_b.weight"), ConfigError,
        "blk.0 has neither attn_kv_b nor both attn_k_b and attn_v_b",
    ),
    "half a kv_b": (without("blk.0.attn_v_b.weight"), ConfigError, "neither attn_kv_b nor both"),
    "half a kv_b later": (without("blk.2.attn_v_b.weight"), WeightError, r"layers\.2\.self_attn\.v_b_proj"),
    "k_b not transposed": (tensor("blk.1.attn_k_b.weight", 4, 16, 32), WeightError, r"blk\.1\.attn_k_b.*\[4, 16, 32\]"),
    "k_b of another size": (tensor("blk.1.attn_k_b.weight", 100, 16), WeightError, r"blk\.1\.attn_k_b.*\[100, 16\]"),
    "groups do not divide": (key("expert_group_count", 5), ConfigError, "16 experts in 5 groups"),
    "more groups used": (key("expert_group_used_count", 9), ConfigError, "in 4 groups, of which 9 are used"),
    "experts": (key("expert_count", 12), WeightError, r"blk\.2\.\w+.* has shape \[16"),
    "experts 0": (key("expert_count", 0), ConfigError, "expert_count is 0, but 2 layers have a router"),
    "no experts": (without_key("expert_count"), ConfigError, "expert_count is 0, but 2 layers have a router"),
    "no routers": (
        without("blk.2.ffn_gate_inp.weight", "blk.3.ffn_gate_inp.weight"), ConfigError,
        "expert_count is 16, but 0 layers have a router",
    ),
    "a stack of fewer experts": (
        tensor("blk.2.ffn_up_exps.weight", 15, 32, 64), WeightError, r"ffn_up_exps.*\[15, 32, 64\]"
    ),
    "more experts used": (key("expert_used_count", 17), ConfigError, "17 of 16 experts are used"),
    "gating of V4": (key("expert_gating_func", 4), ConfigError, "expert_gating_func is 4"),
    "correction missing": (
        without("blk.3.exp_probs_b.bias"), WeightError, r"layers\.3\.mlp\.gate\.e_score_correction_bias"
    ),
    "rope wider than keys": (key("rope.dimension_count", 24), ConfigError, "keys have 24 dimensions, 24 of them"),
    "key length missing": (without_key("attention.key_length_mla"), WeightError, "attn_"),
    "rank": (key("attention.kv_lora_rank", 16), WeightError, r"attn_kv_a|attn_k_b"),
    "nothing but MTP": (key("nextn_predict_layers", 4), ConfigError, "4 of 4 layers are for multi-token prediction"),
    "scaled queries": (key("attention.temperature_scale", 0.1), ConfigError, r"attention\.temperature_scale is given"),
    "multiplier": (key("rope.scaling.yarn_log_multiplier", -0.1), ConfigError, "yarn_log_multiplier is -0.1"),
    "scale": (key("expert_weights_scale", float("nan")), ConfigError, "expert_weights_scale is nan"),
    "block_count": (key("block_count", 3), WeightError, r"blk\.3\."),
    "both kv_b, unasked": (tensor("blk.1.attn_q.weight", 96, 64), WeightError, r"blk\.1\.attn_q\.weight"),
    "embedding missing": (without("token_embd.weight"), ConfigError, r"token_embd\.weight"),
    "gate_up beside gate": (
        tensor("blk.2.ffn_gate_up_exps.weight", 16, 64, 64), WeightError, r"ffn_gate_up_exps\.weight and |ffn_gate_exps"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", GGUFS)
def test_a_wrong_gguf_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    change, error, message = GGUFS[fault]
    contents = deepseek_contents(made("v3")[1])
    change(contents)
    (path,) = write(tmp_path / "wrong.gguf", contents)
    refused(path, error, message)


def test_a_missing_shard_of_a_gguf_is_refused(made: Made, tmp_path: Path) -> None:
    contents = deepseek_contents(made("v3")[1])
    files = write(tmp_path / "model.gguf", contents, split_max_tensors=-(-len(contents.tensors) // 3))
    files[1].unlink()
    refused(files[0], FormatError, rf"1 of 3 shards are missing: {files[1].name}")
