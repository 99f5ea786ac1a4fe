"""Tensor names of Phi checkpoints. Modules are named as in safetensors, but for what is fused there.

A fused tensor is not copied apart: its parts are views of its rows.
"""

from __future__ import annotations

from zoo.weights import Expert, NameMap, Rows, Target

_LAYER = "model.layers.*"
_ATTENTION = f"{_LAYER}.self_attn"
_ROTARY: dict[str, Target] = {f"{_ATTENTION}.rotary_emb.inv_freq": None}  # computed from the configuration


def _qkv(kind: str) -> Rows:
    """Queries of all heads, then keys, then values."""
    return Rows(*(f"{_ATTENTION}.{part}_proj.{kind}" for part in "qkv"))


_GATE_UP = Rows(f"{_LAYER}.mlp.gate_proj.weight", f"{_LAYER}.mlp.up_proj.weight")

# The parts of an expert as the checkpoint names them.
_EXPERT = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

PHI2_HF = NameMap(_ROTARY, identity=True)
PHI3_HF = NameMap(
    {**_ROTARY, f"{_ATTENTION}.qkv_proj.weight": _qkv("weight"), f"{_LAYER}.mlp.gate_up_proj.weight": _GATE_UP},
    identity=True,
)
PHIMOE_HF = NameMap(
    {
        **_ROTARY,
        f"{_LAYER}.block_sparse_moe.gate.weight": f"{_LAYER}.mlp.router.weight",
        **{
            f"{_LAYER}.block_sparse_moe.experts.*.{name}.weight": Expert(f"{_LAYER}.mlp.experts.{part}")
            for name, part in _EXPERT.items()
        },
    },
    identity=True,
)


def _gguf(norm: str, attention_output: str, own: dict[str, Target]) -> NameMap:
    """What the three share, and their `own`. Weights and biases go the same way; what a model lacks is an error."""
    blocks = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
        "attn_output": f"self_attn.{attention_output}",
    }
    names: dict[str, Target] = {
        "rope_factors_long.weight": None,  # read with the configuration
        "rope_factors_short.weight": None,
    }
    for kind in ("weight", "bias"):
        names |= {
            f"token_embd.{kind}": f"model.embed_tokens.{kind}",
            f"output_norm.{kind}": f"model.{norm}.{kind}",
            f"output.{kind}": f"lm_head.{kind}",
            f"blk.*.attn_qkv.{kind}": _qkv(kind),
        }
        names |= {f"blk.*.{gguf}.{kind}": f"{_LAYER}.{hf}.{kind}" for gguf, hf in blocks.items()}
    return NameMap(names | own)


PHI2_GGUF = _gguf(
    "final_layernorm",
    "dense",
    {
        f"blk.*.{gguf}.{kind}": f"{_LAYER}.mlp.{hf}.{kind}"
        for gguf, hf in {"ffn_up": "fc1", "ffn_down": "fc2"}.items()
        for kind in ("weight", "bias")
    },
)
PHI3_GGUF = _gguf(
    "norm",
    "o_proj",
    {"blk.*.ffn_up.weight": _GATE_UP, "blk.*.ffn_down.weight": f"{_LAYER}.mlp.down_proj.weight"},
)
PHIMOE_GGUF = _gguf(
    "norm",
    "o_proj",
    {
        "blk.*.ffn_gate_inp.weight": f"{_LAYER}.mlp.router.weight",
        "blk.*.ffn_gate_up_exps.weight": Rows(
            f"{_LAYER}.mlp.experts.gate_proj", f"{_LAYER}.mlp.experts.up_proj", dim=1
        ),
        **{f"blk.*.ffn_{part}_exps.weight": f"{_LAYER}.mlp.experts.{part}_proj" for part in ("gate", "up", "down")},
    },
)
