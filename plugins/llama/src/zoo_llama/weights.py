"""Tensor names of Llama checkpoints. Modules are named as in safetensors, so only GGUF needs a table."""

from __future__ import annotations

from zoo.weights import NameMap, Rows

_LAYER = "model.layers.*"

HF = NameMap(
    {
        "model.layers.*.self_attn.rotary_emb.inv_freq": None,  # computed from the configuration
    },
    identity=True,
)

_ATTENTION = f"{_LAYER}.self_attn"

GGUF = NameMap(
    {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
        "rope_freqs.weight": None,  # read with the configuration
        "blk.*.attn_rot_embd.weight": None,
        "blk.*.attn_norm.weight": f"{_LAYER}.input_layernorm.weight",
        "blk.*.ffn_norm.weight": f"{_LAYER}.post_attention_layernorm.weight",
    }
    | {
        f"blk.*.{gguf}.{kind}": f"{_LAYER}.{hf}.{kind}"
        for kind in ("weight", "bias")
        for gguf, hf in {
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items()
    }
    | {
        f"blk.*.attn_qkv.{kind}": Rows(*(f"{_ATTENTION}.{part}_proj.{kind}" for part in "qkv"))
        for kind in ("weight", "bias")
    },
)
