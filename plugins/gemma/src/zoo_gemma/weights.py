"""Tensor names of Gemma checkpoints. Modules are named as in safetensors, so only GGUF needs a table."""

from __future__ import annotations

from zoo.weights import WRAPPED, NameMap, Rows, Target

_LAYER = "model.layers.*"

HF = NameMap(
    {
        "model.layers.*.self_attn.rotary_emb.inv_freq": None,  # computed from the configuration
    },
    identity=True,
    prefixes=WRAPPED,  # a multimodal Gemma 3 holds the text model among others
)

_SHARED: dict[str, Target] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": None,  # read with the configuration
    "blk.*.attn_qkv.weight": Rows(*(f"{_LAYER}.self_attn.{part}_proj.weight" for part in "qkv")),
}
_SHARED |= {
    f"blk.*.{gguf}.weight": f"{_LAYER}.{hf}.weight"
    for gguf, hf in {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }.items()
}

GGUF_GEMMA1 = NameMap(_SHARED | {"blk.*.ffn_norm.weight": f"{_LAYER}.post_attention_layernorm.weight"})

# From Gemma 2 on a block has four norms, and ffn_norm is the one before the MLP.
GGUF = NameMap(
    _SHARED
    | {
        "blk.*.post_attention_norm.weight": f"{_LAYER}.post_attention_layernorm.weight",
        "blk.*.ffn_norm.weight": f"{_LAYER}.pre_feedforward_layernorm.weight",
        "blk.*.post_ffw_norm.weight": f"{_LAYER}.post_feedforward_layernorm.weight",
    }
)
