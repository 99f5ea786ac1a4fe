"""Tensor names of Mistral checkpoints, in three layouts. Modules are named as in transformers."""

from __future__ import annotations

from zoo.weights import WRAPPED, Expert, NameMap, Rows, Target

_LAYER = "model.layers.*"
_ATTENTION = f"{_LAYER}.self_attn"
_EXPERTS = f"{_LAYER}.mlp.experts"
_MIXTRAL = f"{_LAYER}.block_sparse_moe"
# Names of the original code: the gate, the way down and the way up.
_W = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

# Mistral's own layout, consolidated.safetensors. Its vision part is left aside.
_CONSOLIDATED: dict[str, Target] = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "layers.*.attention_norm.weight": f"{_LAYER}.input_layernorm.weight",
    "layers.*.ffn_norm.weight": f"{_LAYER}.post_attention_layernorm.weight",
    "layers.*.feed_forward.gate.weight": f"{_LAYER}.mlp.gate.weight",
    **{f"layers.*.attention.w{part}.weight": f"{_ATTENTION}.{part}_proj.weight" for part in "qkvo"},
    **{f"layers.*.feed_forward.{w}.weight": f"{_LAYER}.mlp.{name}.weight" for w, name in _W.items()},
    **{f"layers.*.feed_forward.experts.*.{w}.weight": Expert(f"{_EXPERTS}.{name}") for w, name in _W.items()},
}
# Ministral 3 in FP8 has scales for activations that are rounded too; here they are not.
_MODULES = (
    *(f"{_ATTENTION}.{part}_proj" for part in "qkvo"),
    *(f"{_LAYER}.mlp.{part}_proj" for part in ("gate", "up", "down")),
)
_VISION = ("vision_encoder.", "vision_language_adapter.", "patch_merger.", "pre_mm_projector_norm.")

HF = NameMap(
    {
        f"{_ATTENTION}.rotary_emb.inv_freq": None,  # computed from the configuration
        f"{_MIXTRAL}.gate.weight": f"{_LAYER}.mlp.gate.weight",
        **{f"{_MIXTRAL}.experts.*.{w}.weight": Expert(f"{_EXPERTS}.{name}") for w, name in _W.items()},
        **{f"{module}.activation_scale": None for module in _MODULES},
        **_CONSOLIDATED,
    },
    identity=True,
    prefixes={**WRAPPED, **dict.fromkeys(_VISION)},
)

_GGUF: dict[str, Target] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": None,  # read with the configuration
    "blk.*.attn_rot_embd.weight": None,
    "blk.*.attn_qkv.weight": Rows(*(f"{_ATTENTION}.{part}_proj.weight" for part in "qkv")),
    "blk.*.ffn_gate_up_exps.weight": Rows(f"{_EXPERTS}.gate_proj", f"{_EXPERTS}.up_proj", dim=1),
}
_GGUF |= {
    f"blk.*.{gguf}.weight": f"{_LAYER}.{hf}.weight"
    for gguf, hf in {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate_inp": "mlp.gate",
    }.items()
}
for _name in ("gate", "up", "down"):
    _GGUF[f"blk.*.ffn_{_name}.weight"] = f"{_LAYER}.mlp.{_name}_proj.weight"
    _GGUF[f"blk.*.ffn_{_name}_exps.weight"] = f"{_EXPERTS}.{_name}_proj"
    _GGUF[f"blk.*.ffn_{_name}.*.weight"] = Expert(f"{_EXPERTS}.{_name}_proj")  # files from before April 2024

GGUF = NameMap(_GGUF)
