"""Tensor names of DeepSeek checkpoints. Modules are named as in safetensors."""

from __future__ import annotations

from zoo.weights import Expert, NameMap, Rows, Target

_LAYER = "model.layers.*"
_ATTENTION = f"{_LAYER}.self_attn"
# Up-projections of keys and values, fused head by head.
_KV_B = Rows(f"{_ATTENTION}.k_b_proj.weight", f"{_ATTENTION}.v_b_proj.weight", dim=1)

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

HF = NameMap(
    {
        f"{_ATTENTION}.rotary_emb.inv_freq": None,  # computed from the configuration
        f"{_ATTENTION}.kv_b_proj.weight": _KV_B,
        # The choice of attended tokens in V3.2: below its top-k every token is chosen.
        **{f"{_ATTENTION}.indexer.{name}": None for name in (
            "wq_b.weight", "wq_b.weight_scale_inv", "wk.weight", "wk.weight_scale_inv",
            "k_norm.weight", "k_norm.bias", "weights_proj.weight",
        )},
    }
    | {f"{_LAYER}.mlp.experts.*.{name}.weight": Expert(f"{_LAYER}.mlp.experts.{name}") for name in _PROJECTIONS},
    identity=True,
)  # fmt: skip

_GGUF: dict[str, Target] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": None,  # read with the configuration
    "blk.*.attn_kv_b.weight": _KV_B,
    "blk.*.attn_k_b.weight": f"{_ATTENTION}.k_b_proj.weight",
    "blk.*.attn_v_b.weight": f"{_ATTENTION}.v_b_proj.weight",
    "blk.*.exp_probs_b.bias": f"{_LAYER}.mlp.gate.e_score_correction_bias",
    "blk.*.ffn_gate_up_exps.weight": Rows(f"{_LAYER}.mlp.experts.gate_proj", f"{_LAYER}.mlp.experts.up_proj", dim=1),
}
_GGUF |= {
    f"blk.*.{gguf}.weight": f"{_LAYER}.{hf}.weight"
    for gguf, hf in {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "attn_output": "self_attn.o_proj",
        "ffn_gate_inp": "mlp.gate",
    }.items()
}
for _name in ("gate", "up", "down"):
    _GGUF[f"blk.*.ffn_{_name}.weight"] = f"{_LAYER}.mlp.{_name}_proj.weight"
    _GGUF[f"blk.*.ffn_{_name}_exps.weight"] = f"{_LAYER}.mlp.experts.{_name}_proj"
    _GGUF[f"blk.*.ffn_{_name}_shexp.weight"] = f"{_LAYER}.mlp.shared_experts.{_name}_proj.weight"
for _name in ("attn_q_b.weight", "attn_k.weight", "k_norm.weight", "k_norm.bias", "proj.weight"):
    _GGUF[f"blk.*.indexer.{_name}"] = None  # as in HF

GGUF = NameMap(_GGUF)
