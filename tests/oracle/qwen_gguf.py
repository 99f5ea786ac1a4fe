"""Qwen as llama.cpp's converter writes it. Knows nothing of zoo."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedModel

from oracle.gguf_writer import Contents, Floats, tokenizer_keys

_ARCHITECTURES = {"qwen2": "qwen2", "qwen3": "qwen3", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}
_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
_ROOT = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}


def qwen_contents(model: PreTrainedModel, *, pre: str = "qwen2") -> Contents:
    """Keys and float32 tensors. Sliding windows and norm_topk_prob are lost: there are no keys for them."""
    config, tensors = model.config, {}
    for name, tensor in model.state_dict().items():
        value = tensor.float().numpy()
        if name in _ROOT:
            if name != "lm_head.weight" or not config.tie_word_embeddings:
                tensors[f"{_ROOT[name]}.weight"] = value
            continue
        _, _, number, rest = name.split(".", 3)
        tensors |= _layer(f"blk.{number}", rest, value)
    architecture = _ARCHITECTURES[config.model_type]
    keys = {f"{architecture}.{key}": value for key, value in _keys(config).items()}
    return Contents(architecture, {**keys, **tokenizer_keys(), "tokenizer.ggml.pre": pre}, tensors)


def fuse_gate_up(contents: Contents) -> None:
    """Gate and up of all experts in one tensor, as the converter's --fuse-gate-up-exps does."""
    for name in [name for name in contents.tensors if "ffn_gate_exps" in name]:
        gate, up = contents.tensors.pop(name), contents.tensors.pop(name.replace("gate", "up"))
        contents.tensors[name.replace("gate", "gate_up")] = np.concatenate((gate, up), axis=1)


def _layer(block: str, rest: str, value: Floats) -> dict[str, Floats]:
    if rest == "mlp.experts.gate_up_proj":
        half = value.shape[1] // 2
        return {
            f"{block}.ffn_gate_exps.weight": np.ascontiguousarray(value[:, :half]),
            f"{block}.ffn_up_exps.weight": np.ascontiguousarray(value[:, half:]),
        }
    if rest == "mlp.experts.down_proj":
        return {f"{block}.ffn_down_exps.weight": value}
    module, _, kind = rest.rpartition(".")
    # The converter squeezes the gate of the shared expert, [1, D].
    return {f"{block}.{_NAMES[module]}.{kind}": value[0] if module == "mlp.shared_expert_gate" else value}


def _keys(config: Any) -> dict[str, Any]:
    rope, heads = config.rope_parameters, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if config.model_type in ("qwen3", "qwen3_moe"):
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if rope["rope_type"] == "yarn":
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        }
    if hasattr(config, "num_experts"):
        keys |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    if hasattr(config, "shared_expert_intermediate_size"):
        keys["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    return keys
