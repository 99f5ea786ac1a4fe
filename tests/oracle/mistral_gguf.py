"""GGUF files of Mistral and Mixtral as llama.cpp's converter makes them, from models of transformers.

    contents = mistral_contents(model)                       # `llama`, or `mistral3` where queries are scaled
    contents = mistral_contents(model, stacked=False)        # Mixtral before April 2024: one tensor per expert

Like `oracle.gguf_writer` it knows nothing of zoo.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel

from oracle.gguf_writer import Contents, pair_rows, tokenizer_keys
from oracle.mistral_checkpoints import expert_names

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_EXPERTS = {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}


def mistral_contents(model: PreTrainedModel, *, stacked: bool = True, architecture: str | None = None) -> Contents:
    """Keys and float32 tensors. Rows of q and k are reordered to pairs; a window is no key of these files.

    `architecture`: "mistral3" for the text part of a Small 3.1, which may call itself so.
    """
    config: Any = model.config
    state = {name: value.float().numpy() for name, value in expert_names(model.state_dict()).items()}
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        tensors["output.weight"] = state["lm_head.weight"]
    counts = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for module, short in _NAMES.items():
            value = state.get(f"model.layers.{layer}.{module}.weight")
            if value is not None:
                tensors[f"blk.{layer}.{short}.weight"] = pair_rows(value, counts[short]) if short in counts else value
        for old, short in _EXPERTS.items():
            stem = f"model.layers.{layer}.block_sparse_moe.experts"
            parts = [state[f"{stem}.{e}.{old}.weight"] for e in range(getattr(config, "num_local_experts", 0))]
            if parts and stacked:
                tensors[f"blk.{layer}.{short}_exps.weight"] = np.stack(parts)
            for expert, part in enumerate([] if stacked else parts):
                tensors[f"blk.{layer}.{short}.{expert}.weight"] = part
    tempered = config.rope_parameters.get("llama_4_scaling_beta") is not None
    architecture = architecture or ("mistral3" if tempered else "llama")
    keys = {f"{architecture}.{key}": value for key, value in _keys(config).items()}
    return Contents(architecture, {**keys, **tokenizer_keys()}, tensors)


def _keys(config: PretrainedConfig) -> dict[str, Any]:
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if experts := getattr(config, "num_local_experts", 0):
        keys |= {"expert_count": experts, "expert_used_count": config.num_experts_per_tok}
    if rope["rope_type"] == "yarn":
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
            "rope.scaling.yarn_beta_fast": float(rope["beta_fast"]),
            "rope.scaling.yarn_beta_slow": float(rope["beta_slow"]),
            "rope.scaling.yarn_log_multiplier": float(rope["mscale_all_dim"]),
            "attention.temperature_scale": float(rope["llama_4_scaling_beta"]),
        }
    return keys
