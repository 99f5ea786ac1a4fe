"""Tiny random Qwens, written by transformers: every peculiarity that releases and their configurations have.

model = save_qwen(directory, "qwen3 moe")        # float32, in eval mode
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen2MoeConfig, Qwen3Config, Qwen3MoeConfig

from oracle.checkpoints import VOCAB_SIZE, save_checkpoint

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# As every release of Qwen3 has it, the heads together are wider than the model.
_QWEN3 = {"head_dim": 32}
_EXPERTS = {"num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
_SHARED = {**_EXPERTS, "shared_expert_intermediate_size": 48}
_SLIDING = {"use_sliding_window": True, "sliding_window": 24}
_WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}

VARIANTS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen2": (Qwen2Config, {}),
    "qwen2 tied": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2 one kv head": (Qwen2Config, {"num_key_value_heads": 1}),
    "qwen2 yarn": (Qwen2Config, {"rope_parameters": YARN}),
    "qwen2 theta": (Qwen2Config, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2 eps": (Qwen2Config, {"rms_norm_eps": 0.1}),
    "qwen2 window from layer 1": (Qwen2Config, {**_SLIDING, "max_window_layers": 1}),
    "qwen2 window everywhere": (Qwen2Config, {**_SLIDING, "max_window_layers": 0}),
    "qwen2 window beyond the last layer": (Qwen2Config, {**_SLIDING, "max_window_layers": 3}),
    "qwen2 layer types": (
        Qwen2Config, {**_SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    ),
    "qwen2 yarn and window": (Qwen2Config, {**_SLIDING, "max_window_layers": 2, "rope_parameters": YARN}),
    "qwen3": (Qwen3Config, _QWEN3),
    "qwen3 tied": (Qwen3Config, {**_QWEN3, "tie_word_embeddings": True}),
    "qwen3 yarn": (Qwen3Config, {**_QWEN3, "rope_parameters": YARN}),
    "qwen3 biases": (Qwen3Config, {**_QWEN3, "attention_bias": True}),
    "qwen3 narrow heads": (Qwen3Config, {"head_dim": 8}),
    "qwen3 window": (Qwen3Config, {**_QWEN3, **_SLIDING, "max_window_layers": 2}),
    "qwen3 eps": (Qwen3Config, {**_QWEN3, "rms_norm_eps": 0.1}),
    "qwen2 moe": (Qwen2MoeConfig, _SHARED),
    "qwen2 moe tied": (Qwen2MoeConfig, {**_SHARED, "tie_word_embeddings": True}),
    "qwen2 moe normalised": (Qwen2MoeConfig, {**_SHARED, "norm_topk_prob": True}),
    "qwen2 moe every second layer": (Qwen2MoeConfig, {**_SHARED, "decoder_sparse_step": 2}),
    "qwen2 moe with a dense layer": (Qwen2MoeConfig, {**_SHARED, "mlp_only_layers": [1]}),
    "qwen2 moe without biases": (Qwen2MoeConfig, {**_SHARED, "qkv_bias": False}),
    "qwen2 moe window": (Qwen2MoeConfig, {**_SHARED, **_SLIDING, "max_window_layers": 2}),
    "qwen3 moe": (Qwen3MoeConfig, {**_QWEN3, **_EXPERTS, "norm_topk_prob": True}),
    "qwen3 moe tied": (Qwen3MoeConfig, {**_QWEN3, **_EXPERTS, "norm_topk_prob": True, "tie_word_embeddings": True}),
    "qwen3 moe not normalised": (Qwen3MoeConfig, {**_QWEN3, **_EXPERTS}),
    "qwen3 moe with dense layers": (
        Qwen3MoeConfig, {**_QWEN3, **_EXPERTS, "norm_topk_prob": True, "mlp_only_layers": [0, 2]}
    ),
    "qwen3 moe yarn": (Qwen3MoeConfig, {**_QWEN3, **_EXPERTS, "norm_topk_prob": True, "rope_parameters": YARN}),
    "qwen3 moe window": (Qwen3MoeConfig, {**_QWEN3, **_EXPERTS, **_SLIDING, "norm_topk_prob": True}),
    # Rows of 256, which block types need.
    "qwen2 wide": (Qwen2Config, _WIDE),
    "qwen2 moe wide": (
        Qwen2MoeConfig, {**_WIDE, **_SHARED, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256}
    ),
}  # fmt: skip


def qwen_config(variant: str, **changes: Any) -> PretrainedConfig:
    kind, values = VARIANTS[variant]
    merged = {**_BASE, **values, **changes}
    # 0.2 at 64 columns, and logits as large at others.
    merged.setdefault("initializer_range", 1.6 / merged["hidden_size"] ** 0.5)
    return kind(**merged)


def save_qwen(directory: Path, variant: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Write a checkpoint; returns the float32 model."""
    return save_checkpoint(directory, qwen_config(variant, **changes), seed=seed)
