"""Tensor names of Qwen checkpoints. Modules are named as in safetensors, except for experts."""

from __future__ import annotations

from zoo.weights import Apply, Expert, NameMap, Rows, Target

_LAYER = "model.layers.*"
_PROJECTIONS = ("gate", "up", "down")

HF = NameMap(
    {f"{_LAYER}.mlp.experts.*.{name}_proj.weight": Expert(f"{_LAYER}.mlp.experts.{name}_proj") for name in _PROJECTIONS}
    | {f"{_LAYER}.self_attn.rotary_emb.inv_freq": None},  # computed from the configuration
    identity=True,
)


_GGUF: dict[str, Target] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": None,  # read with the configuration
    "blk.*.attn_norm.weight": f"{_LAYER}.input_layernorm.weight",
    "blk.*.ffn_norm.weight": f"{_LAYER}.post_attention_layernorm.weight",
    "blk.*.attn_q_norm.weight": f"{_LAYER}.self_attn.q_norm.weight",
    "blk.*.attn_k_norm.weight": f"{_LAYER}.self_attn.k_norm.weight",
    "blk.*.ffn_gate_inp.weight": f"{_LAYER}.mlp.gate.weight",
    # A vector [D], where safetensors have a matrix [1, D].
    "blk.*.ffn_gate_inp_shexp.weight": Apply(
        lambda weight: weight.view((1, weight.shape[-1])), f"{_LAYER}.mlp.shared_expert_gate.weight"
    ),
    "blk.*.ffn_gate_up_exps.weight": Rows(f"{_LAYER}.mlp.experts.gate_proj", f"{_LAYER}.mlp.experts.up_proj", dim=1),
}
for _kind in ("weight", "bias"):
    for _part, _name in {"q": "q_proj", "k": "k_proj", "v": "v_proj", "output": "o_proj"}.items():
        _GGUF[f"blk.*.attn_{_part}.{_kind}"] = f"{_LAYER}.self_attn.{_name}.{_kind}"
    _GGUF[f"blk.*.attn_qkv.{_kind}"] = Rows(*(f"{_LAYER}.self_attn.{part}_proj.{_kind}" for part in "qkv"))
for _name in _PROJECTIONS:
    _GGUF[f"blk.*.ffn_{_name}.weight"] = f"{_LAYER}.mlp.{_name}_proj.weight"
    _GGUF[f"blk.*.ffn_{_name}_exps.weight"] = f"{_LAYER}.mlp.experts.{_name}_proj"
    _GGUF[f"blk.*.ffn_{_name}_shexp.weight"] = f"{_LAYER}.mlp.shared_expert.{_name}_proj.weight"

GGUF = NameMap(_GGUF)
