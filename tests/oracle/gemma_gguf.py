"""Gemma as llama.cpp's converter writes it: 1 is added to every norm, and most choices have no key.

Knows nothing of zoo.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from oracle.gguf_writer import Contents, tokenizer_keys

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TWO_NORMS = {"post_attention_layernorm": "ffn_norm"}
_FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gemma_contents(model: PreTrainedModel, *, complete: bool = False) -> Contents:
    """Keys and float32 tensors. `complete`: with the keys that only late converters write for Gemma 3."""
    config, state = model.config, {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    architecture = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}[config.model_type]
    names = {**_NAMES, **(_TWO_NORMS if architecture == "gemma" else _FOUR_NORMS)}
    tensors = {"token_embd.weight": state["model.embed_tokens.weight"]}
    if not config.tie_word_embeddings:
        tensors["output.weight"] = state["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        for module, short in names.items():
            value = state.get(f"model.layers.{layer}.{module}.weight")
            if value is not None:
                tensors[f"blk.{layer}.{short}.weight"] = value + 1 if value.ndim == 1 else value
    tensors["output_norm.weight"] = state["model.norm.weight"] + 1
    keys = {f"{architecture}.{key}": value for key, value in _keys(config, architecture, complete).items()}
    return Contents(architecture, {**keys, **tokenizer_keys()}, tensors)


def _keys(config: Any, architecture: str, complete: bool) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }
    if architecture == "gemma":
        return keys
    keys["attention.sliding_window"] = config.sliding_window
    if config.final_logit_softcapping:
        keys["final_logit_softcapping"] = float(config.final_logit_softcapping)
    if architecture == "gemma2":
        keys["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        keys["rope.freq_base"] = float(config.rope_parameters["rope_theta"])
        return keys
    everywhere, local = (config.rope_parameters[kind] for kind in ("full_attention", "sliding_attention"))
    keys["rope.freq_base"] = float(everywhere["rope_theta"])
    if everywhere["rope_type"] == "linear":
        keys["rope.scaling.type"] = "linear"
        keys["rope.scaling.factor"] = float(everywhere["factor"])
    if complete:
        keys["rope.freq_base_swa"] = float(local["rope_theta"])
        keys["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in config.layer_types]
    return keys
