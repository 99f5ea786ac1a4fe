"""DeepSeek as llama.cpp's converter writes it, in the three layouts that files have. Knows nothing of zoo."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from oracle import checkpoints
from oracle.gguf_writer import Contents, Floats, tokenizer_keys

LAYOUTS = ("fused", "split", "both")
_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "self_attn.indexer.wq_b.weight": "indexer.attn_q_b.weight",
    "self_attn.indexer.wk.weight": "indexer.attn_k.weight",
    "self_attn.indexer.k_norm.weight": "indexer.k_norm.weight",
    "self_attn.indexer.k_norm.bias": "indexer.k_norm.bias",
    "self_attn.indexer.weights_proj.weight": "indexer.proj.weight",
}


def deepseek_contents(
    model: PreTrainedModel, layout: str = "split", *, architecture: str = "deepseek2", matrices: bool = False
) -> Contents:
    """Keys and float32 tensors.

    `layout`: kv_b "fused" (files up to April 2025), "split" in keys and values, or "both" with the keys of old files,
    as forks write them. `matrices`: the split ones as matrices, not stacks.
    """
    config = model.config
    tensors: dict[str, Floats] = {}
    for name, tensor in model.state_dict().items():
        value = tensor.float().numpy()
        if not value.size:
            continue  # shared experts that are not there
        if not name.startswith("model.layers."):
            root = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            if name != "lm_head.weight" or not config.tie_word_embeddings:
                tensors[f"{root[name.removesuffix('.weight')]}.weight"] = value
            continue
        _, _, number, rest = name.split(".", 3)
        block = f"blk.{number}"
        if rest in _NAMES:
            tensors[f"{block}.{_NAMES[rest]}"] = value
        elif rest == "mlp.experts.gate_up_proj":
            half = value.shape[1] // 2
            tensors[f"{block}.ffn_gate_exps.weight"] = np.ascontiguousarray(value[:, :half])
            tensors[f"{block}.ffn_up_exps.weight"] = np.ascontiguousarray(value[:, half:])
        else:
            assert rest == "self_attn.kv_b_proj.weight", name
            tensors |= _kv_b(block, value, config, layout, matrices)
    keys = {f"{architecture}.{key}": value for key, value in _keys(config, layout).items()}
    return Contents(architecture, {**keys, **tokenizer_keys()}, tensors)


def logits_of(contents: Contents, model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Logits float32 of transformers with the tensors of a file whose kv_b is split; the model keeps them."""
    state = {}
    tensors = {name: torch.from_numpy(value) for name, value in contents.tensors.items()}
    names = {short: long for long, short in _NAMES.items()}
    for name, value in tensors.items():
        if not name.startswith("blk."):
            root = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
            state[f"{root[name.removesuffix('.weight')]}.weight"] = value
            continue
        _, number, rest = name.split(".", 2)
        layer = f"model.layers.{number}"
        if rest in names:
            state[f"{layer}.{names[rest]}"] = value
        elif rest == "attn_k_b.weight":
            heads = torch.cat((value.transpose(1, 2), tensors[f"blk.{number}.attn_v_b.weight"]), dim=1)
            state[f"{layer}.self_attn.kv_b_proj.weight"] = heads.flatten(0, 1)
        elif rest == "ffn_gate_exps.weight":
            up = tensors[f"blk.{number}.ffn_up_exps.weight"]
            state[f"{layer}.mlp.experts.gate_up_proj"] = torch.cat((value, up), dim=1)
        else:
            assert rest in ("attn_v_b.weight", "ffn_up_exps.weight"), name
    model.load_state_dict(state)
    return checkpoints.logits(model, ids)


def fuse_gate_up(contents: Contents) -> None:
    """Gate and up of all experts in one tensor, as the converter's --fuse-gate-up-exps does."""
    for name in [name for name in contents.tensors if "ffn_gate_exps" in name]:
        gate, up = contents.tensors.pop(name), contents.tensors.pop(name.replace("gate", "up"))
        contents.tensors[name.replace("gate", "gate_up")] = np.concatenate((gate, up), axis=1)


def packable(contents: Contents, kind: str, narrow: str) -> dict[str, str]:
    """Types by tensor: `kind`, or `narrow` where rows are no multiple of 256; routers and indexers stay float32."""
    return {
        name: kind if value.shape[-1] % 256 == 0 else narrow
        for name, value in contents.tensors.items()
        if value.ndim > 1 and "ffn_gate_inp" not in name
    }


def _kv_b(block: str, value: Floats, config: Any, layout: str, matrices: bool) -> dict[str, Floats]:
    if layout == "fused":
        return {f"{block}.attn_kv_b.weight": value}
    nope = config.qk_nope_head_dim
    heads = value.reshape(config.num_attention_heads, nope + config.v_head_dim, config.kv_lora_rank)
    keys = np.ascontiguousarray(heads[:, :nope].transpose(0, 2, 1))
    values = np.ascontiguousarray(heads[:, nope:])
    if matrices:
        keys, values = keys.reshape(-1, nope), values.reshape(-1, config.kv_lora_rank)
    parts = {f"{block}.attn_k_b.weight": keys, f"{block}.attn_v_b.weight": values}
    return parts if layout == "split" else {f"{block}.attn_kv_b.weight": value, **parts}


def _keys(config: Any, layout: str) -> dict[str, Any]:
    v2 = config.model_type == "deepseek_v2"
    key_length, value_length = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    keys: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "leading_dense_block_count": config.first_k_dense_replace,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.kv_lora_rank": config.kv_lora_rank,
        "rope.dimension_count": config.qk_rope_head_dim,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": bool(not v2 and config.norm_topk_prob),
        "expert_gating_func": 1 if v2 else 2,
        "expert_group_count": config.n_group or 1,
        "expert_group_used_count": config.topk_group or 1,
    }
    if config.q_lora_rank is not None:
        keys["attention.q_lora_rank"] = config.q_lora_rank
    if layout == "split":
        keys |= {
            "attention.head_count_kv": 1,
            "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
            "attention.value_length": config.kv_lora_rank,
            "attention.key_length_mla": key_length,
            "attention.value_length_mla": value_length,
        }
    else:
        keys |= {
            "attention.head_count_kv": config.num_attention_heads,
            "attention.key_length": key_length,
            "attention.value_length": value_length,
        }
    rope = config.rope_parameters
    if rope["rope_type"] == "yarn":
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        }
        if rope.get("mscale_all_dim"):
            keys["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
    return keys
