"""Tiny random DeepSeeks, written by transformers: every kind of routing, query and rotation that releases have.

model = save_deepseek(directory, "v3")        # float32, in eval mode
save_fp8(directory, model)                    # as DeepSeek publishes V3; `model` gets the rounded weights
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV3Config, DeepseekV32Config, PretrainedConfig, PreTrainedModel

from oracle.checkpoints import VOCAB_SIZE, randomise, tiny_tokenizer

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_FILE = "model.safetensors"
YARN_V2 = {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 16,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def _without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


_LITE = {
    "q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
    "norm_topk_prob": False,
}  # fmt: skip
# More experts than groups are used: else the best experts are always in the best groups.
_V2 = {
    "n_routed_experts": 32, "num_experts_per_tok": 6, "n_group": 8, "topk_group": 3, "norm_topk_prob": False,
    "topk_method": "group_limited_greedy", "routed_scaling_factor": 4.0, "rope_parameters": YARN_V2,
}  # fmt: skip
_V3 = {
    "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "n_shared_experts": 1,
    "first_k_dense_replace": 2, "rope_parameters": YARN, "num_hidden_layers": 4,
}  # fmt: skip

VARIANTS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "v2-lite": (DeepseekV2Config, {**_LITE, "rope_parameters": YARN_V2}),
    "v2-lite unscaled": (DeepseekV2Config, _LITE),
    "v2": (DeepseekV2Config, _V2),
    "v2.5": (DeepseekV2Config, {**_V2, "rope_parameters": YARN}),
    "v3": (DeepseekV3Config, _V3),
    "v3 tied": (DeepseekV3Config, {**_V3, "tie_word_embeddings": True}),
    "v3 one group": (DeepseekV3Config, {**_V3, "n_group": 1, "topk_group": 1}),
    # 6 of the 8 experts in two groups: some of those have negative scores.
    "v3 six experts": (DeepseekV3Config, {**_V3, "num_experts_per_tok": 6}),
    "v3 without q_lora": (DeepseekV3Config, {**_V3, "q_lora_rank": None}),
    "v3 weights not normalised": (DeepseekV3Config, {**_V3, "norm_topk_prob": False}),
    "v3 halves": (DeepseekV3Config, {**_V3, "rope_interleave": False}),
    "v3 all dense": (DeepseekV3Config, {**_V3, "first_k_dense_replace": 4}),
    "v3 eps": (DeepseekV3Config, {**_V3, "rms_norm_eps": 0.1}),
    "v3.2": (DeepseekV32Config, {**_V3, "index_topk": 128, "index_n_heads": 4, "index_head_dim": 16}),
    "v3 shared 2": (DeepseekV3Config, {**_V3, "n_shared_experts": 2}),
    "v3 shared 0": (DeepseekV3Config, {**_V3, "n_shared_experts": 0}),
    "v3 mscale_all_dim alone": (DeepseekV3Config, {**_V3, "rope_parameters": _without(YARN, "mscale")}),
    "v3 mscale alone": (DeepseekV3Config, {**_V3, "rope_parameters": _without(YARN, "mscale_all_dim")}),
    "v3 no mscale": (DeepseekV3Config, {**_V3, "rope_parameters": _without(YARN, "mscale", "mscale_all_dim")}),
    "v3 mscales differ": (DeepseekV3Config, {**_V3, "rope_parameters": {**YARN, "mscale": 0.4}}),
    # As many experts as V2 has, by which its first GGUF files are known: groups 8, of which 3, weights times 16.
    "v2 of 160": (
        DeepseekV2Config, {**_V2, "n_routed_experts": 160, "routed_scaling_factor": 16.0}
    ),
    "v3 of 256": (DeepseekV3Config, {**_V3, "n_routed_experts": 256, "n_group": 8, "topk_group": 4}),
    # Ungrouped, as llama.cpp routes every V2; 27 layers, by which it knows a V2-Lite.
    "v2-lite of 27": (
        DeepseekV2Config, {**_LITE, "rope_parameters": YARN_V2, "num_hidden_layers": 27}
    ),
    "v2 ungrouped": (DeepseekV2Config, {**_V2, "topk_method": "greedy", "n_group": 1, "topk_group": 1}),
    # Rows of 256, which block types need; kv_lora_rank too, nope of 32 for attn_k_b.
    "wide": (
        DeepseekV3Config,
        {
            **_V3, "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "num_hidden_layers": 2,
            "first_k_dense_replace": 1,
            "n_routed_experts": 8, "n_group": 4, "kv_lora_rank": 256, "q_lora_rank": 256, "qk_nope_head_dim": 32,
            "v_head_dim": 64,
        },
    ),
}  # fmt: skip


def deepseek_config(variant: str, **changes: Any) -> PretrainedConfig:
    kind, values = VARIANTS[variant]
    merged = {**_BASE, **values, **changes}
    # 0.2 at 64 columns, and logits as large at others.
    merged.setdefault("initializer_range", 1.6 / merged["hidden_size"] ** 0.5)
    return kind(**merged)


def save_deepseek(directory: Path, variant: str, *, seed: int = 0, max_shard_size: str = "1GB", **changes: Any) -> Any:
    """Write a checkpoint; returns the float32 model with eager attention and large correction biases."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = deepseek_config(variant, **changes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # shared experts that are not there
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    randomise(model)
    if config.num_hidden_layers > 8:
        _calm(model)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 2)  # scores are between 0 and 1: the bias decides, and many sums are negative
    model.eval().save_pretrained(directory, max_shard_size=max_shard_size)
    if not config.n_shared_experts:
        _drop_empty(directory)
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    return model


def _drop_empty(directory: Path) -> None:
    """A publisher writes no tensors of 0 rows for shared experts that are not there."""
    save_file({name: value for name, value in tensors_of(directory).items() if value.numel()}, directory / _FILE)


@torch.no_grad()
def _calm(model: PreTrainedModel) -> None:
    """Weights of half the size in a deep model, or rounding alone grows from layer to layer past any tolerance."""
    for _name, parameter in model.model.layers.named_parameters():
        if parameter.ndim > 1:
            parameter.mul_(0.5)


def tensors_of(directory: Path) -> dict[str, Tensor]:
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def rewrite(directory: Path, target: Path, tensors: dict[str, Tensor], **config: Any) -> None:
    """The checkpoint with other tensors and keys of config.json; a key set to None is taken out."""
    values = {**json.loads((directory / "config.json").read_text()), **config}
    target.mkdir(exist_ok=True)
    kept = {key: value for key, value in values.items() if key not in config or value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    (target / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    save_file({name: value.contiguous() for name, value in tensors.items()}, target / _FILE)


def fp8_tensors(tensors: dict[str, Tensor], block: tuple[int, int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What DeepSeek publishes (F8_E4M3 and `weight_scale_inv`), and the same unpacked to float32."""
    packed, exact = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if weight.ndim != 2 or any(part in name for part in ("embed", "lm_head", "gate.weight", "eh_proj")):
            continue
        scale = torch.empty([-(-size // step) for size, step in zip(weight.shape, block, strict=True)])
        data, plain = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(weight.shape)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                at = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
                scale[i, j] = weight[at].abs().max() / 448
                data[at] = (weight[at] / scale[i, j]).to(torch.float8_e4m3fn)
                plain[at] = data[at].float() * scale[i, j]
        packed[name], packed[f"{name}_scale_inv"], exact[name] = data, scale, plain
    return packed, exact


def fp8_config(block: tuple[int, int]) -> dict[str, Any]:
    return {
        "quantization_config": {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(block),
        }
    }  # fmt: skip


def with_weights(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """The model of transformers again, with the weights of another directory."""
    return type(model).from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
