"""Phis as llama.cpp's converter writes them: fused rows stay fused, ffn_up holds gate and up, LongRoPE is two tensors.

It knows nothing of zoo: a second statement of the format, to hold zoo's tables against.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from oracle.gguf_writer import Contents, Floats, tokenizer_keys

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.norm.bias": "output_norm.bias",
    "model.final_layernorm.weight": "output_norm.weight",
    "model.final_layernorm.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
    "lm_head.bias": "output.bias",
}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.dense": "attn_output",
    "self_attn.o_proj": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.router": "ffn_gate_inp",
}
_ARCHITECTURES = {"phi": "phi2", "phi3": "phi3", "phimoe": "phimoe"}


def phi_contents(model: PreTrainedModel) -> Contents:
    """A Phi of any of the three architectures."""
    config, architecture = model.config, _ARCHITECTURES[model.config.model_type]
    tensors: dict[str, Floats] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensors |= _renamed(name, tensor.float().numpy())
    keys = {
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
    }
    rope = config.rope_parameters
    head_dim = config.hidden_size // config.num_attention_heads
    keys[f"{architecture}.rope.dimension_count"] = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if architecture == "phi2":
        keys["phi2.attention.layer_norm_epsilon"] = float(config.layer_norm_eps)
        keys["tokenizer.ggml.add_bos_token"] = False
    else:
        keys |= {f"{architecture}.{key}": value for key, value in _phi3_keys(config).items()}
        tensors |= _factors(rope)
    if architecture == "phimoe":
        keys["phimoe.expert_used_count"] = config.num_experts_per_tok
        keys["phimoe.expert_count"] = config.num_local_experts
    return Contents(architecture, {**keys, **tokenizer_keys()}, tensors)


def _renamed(name: str, value: Floats) -> dict[str, Floats]:
    if name in _TOP:
        return {_TOP[name]: value}
    _, _, layer, rest = name.split(".", 3)
    if rest == "mlp.experts.gate_up_proj":
        gate, up = np.split(value, 2, axis=1)
        return {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
    if rest == "mlp.experts.down_proj":
        return {f"blk.{layer}.ffn_down_exps.weight": value}
    module, kind = rest.rsplit(".", 1)
    return {f"blk.{layer}.{_BLOCK[module]}.{kind}": value}


def _phi3_keys(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    original = rope.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", config.max_position_embeddings
    )
    keys = {
        "rope.scaling.original_context_length": original,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope["rope_theta"]),
        "attention.sliding_window": config.sliding_window or 0,
    }
    scale = config.max_position_embeddings / original
    if rope.get("long_factor"):
        keys["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return keys


def _factors(rope: Any) -> dict[str, Floats]:
    if not rope.get("long_factor"):
        return {}
    return {f"rope_factors_{form}.weight": np.array(rope[f"{form}_factor"], np.float32) for form in ("long", "short")}
