"""DeepSeeks at their real sizes, as sparse files: names, shapes, types and shards are the published ones, the weights
are holes that read as zeros and take no disk.

    write_safetensors(directory, R1)            # 163 shards, 688.6 GB by their length
    write_gguf(directory, R1, tokenizer_keys)   # IQ1_S experts, three shards, 218.8 GB; returns the first

It knows nothing of zoo.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter


@dataclass(frozen=True)
class Sizes:
    """`mtp`: whether a layer for multi-token prediction follows; `fp8`: matrices in F8_E4M3, else BF16."""

    layers: int
    dense: int
    experts: int
    hidden: int
    intermediate: int
    moe_intermediate: int
    shared: int
    vocab: int
    heads: int
    q_lora: int | None
    config: dict[str, Any]
    kv_lora: int = 512
    nope: int = 128
    rope: int = 64
    value: int = 128
    mtp: bool = False
    fp8: bool = False
    shards: int = 1


_YARN = {
    "beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn",
}  # fmt: skip

R1 = Sizes(
    layers=61, dense=3, experts=256, hidden=7168, intermediate=18432, moe_intermediate=2048, shared=1, vocab=129280,
    heads=128, q_lora=1536, mtp=True, fp8=True, shards=163,
    config={
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_nextn_predict_layers": 1,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc",
        "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        "rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        "quantization_config": {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
        },
        "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
    },
)  # fmt: skip
V2_LITE = Sizes(
    layers=27, dense=1, experts=64, hidden=2048, intermediate=10944, moe_intermediate=1408, shared=2, vocab=102400,
    heads=16, q_lora=None, shards=4,
    config={
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "num_experts_per_tok": 6,
        "n_group": 1, "topk_group": 1, "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False,
        "routed_scaling_factor": 1.0, "rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        "bos_token_id": 100000, "eos_token_id": 100001,
    },
)  # fmt: skip

_BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
Shape = tuple[int, ...]


def _projections(sizes: Sizes, width: int) -> dict[str, Shape]:
    d = sizes.hidden
    return {"gate_proj": (width, d), "up_proj": (width, d), "down_proj": (d, width)}


def _config(sizes: Sizes) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocab, "hidden_size": sizes.hidden, "intermediate_size": sizes.intermediate,
        "moe_intermediate_size": sizes.moe_intermediate, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.heads, "n_shared_experts": sizes.shared,
        "n_routed_experts": sizes.experts, "first_k_dense_replace": sizes.dense, "moe_layer_freq": 1,
        "q_lora_rank": sizes.q_lora, "kv_lora_rank": sizes.kv_lora, "qk_nope_head_dim": sizes.nope,
        "qk_rope_head_dim": sizes.rope, "v_head_dim": sizes.value, "hidden_act": "silu",
        "max_position_embeddings": 163840, "rms_norm_eps": 1e-06, "rope_theta": 10000, "attention_bias": False,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, **sizes.config,
    }  # fmt: skip


def hf_tensors(sizes: Sizes) -> Iterator[tuple[str, str, Shape]]:
    """Name, dtype and shape of each tensor, in order of layers."""
    table = (sizes.vocab, sizes.hidden)
    yield "model.embed_tokens.weight", "BF16", table
    for layer in range(sizes.layers + sizes.mtp):
        yield from _hf_layer(sizes, f"model.layers.{layer}", dense=layer < sizes.dense)
    if sizes.mtp:
        last = f"model.layers.{sizes.layers}"
        yield f"{last}.embed_tokens.weight", "BF16", table
        yield f"{last}.eh_proj.weight", "BF16", (sizes.hidden, 2 * sizes.hidden)
        for name in ("enorm", "hnorm", "shared_head.norm"):
            yield f"{last}.{name}.weight", "BF16", (sizes.hidden,)
        yield f"{last}.shared_head.head.weight", "BF16", table
    yield "model.norm.weight", "BF16", (sizes.hidden,)
    yield "lm_head.weight", "BF16", table


def _hf_layer(sizes: Sizes, prefix: str, *, dense: bool) -> Iterator[tuple[str, str, Shape]]:
    d, heads = sizes.hidden, sizes.heads
    queries, attention = heads * (sizes.nope + sizes.rope), f"{prefix}.self_attn"
    matrices: dict[str, Shape] = {f"{attention}.kv_a_proj_with_mqa": (sizes.kv_lora + sizes.rope, d)}
    vectors = {f"{prefix}.input_layernorm": d, f"{prefix}.post_attention_layernorm": d}
    vectors[f"{attention}.kv_a_layernorm"] = sizes.kv_lora
    if sizes.q_lora is None:
        matrices[f"{attention}.q_proj"] = (queries, d)
    else:
        vectors[f"{attention}.q_a_layernorm"] = sizes.q_lora
        matrices |= {f"{attention}.q_a_proj": (sizes.q_lora, d), f"{attention}.q_b_proj": (queries, sizes.q_lora)}
    matrices[f"{attention}.kv_b_proj"] = (heads * (sizes.nope + sizes.value), sizes.kv_lora)
    matrices[f"{attention}.o_proj"] = (d, heads * sizes.value)
    mlp = f"{prefix}.mlp"
    if dense:
        matrices |= {f"{mlp}.{name}": shape for name, shape in _projections(sizes, sizes.intermediate).items()}
    else:
        shared = _projections(sizes, sizes.moe_intermediate * sizes.shared)
        matrices |= {f"{mlp}.shared_experts.{name}": shape for name, shape in shared.items()}
        for expert in range(sizes.experts):
            for name, shape in _projections(sizes, sizes.moe_intermediate).items():
                matrices[f"{mlp}.experts.{expert}.{name}"] = shape
        yield f"{mlp}.gate.weight", "BF16", (sizes.experts, d)
        if sizes.config["scoring_func"] == "sigmoid":
            yield f"{mlp}.gate.e_score_correction_bias", "F32", (sizes.experts,)
    for name, size in vectors.items():
        yield f"{name}.weight", "BF16", (size,)
    for name, (rows, columns) in matrices.items():
        yield f"{name}.weight", "F8_E4M3" if sizes.fp8 else "BF16", (rows, columns)
        if sizes.fp8:
            yield f"{name}.weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128))


def write_safetensors(directory: Path, sizes: Sizes) -> int:
    """Write config.json, the index and all shards; returns the bytes of all tensors."""
    tensors = list(hf_tensors(sizes))
    nbytes = [_BYTES[dtype] * int(np.prod(shape)) for _, dtype, shape in tensors]
    per_shard, weight_map, begin = -(-sum(nbytes) // sizes.shards), {}, 0
    for number in range(1, sizes.shards + 1):
        header: dict[str, Any] = {}
        end, filled = begin, 0
        while end < len(tensors) and (not filled or filled + nbytes[end] <= per_shard or number == sizes.shards):
            name, dtype, shape = tensors[end]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [filled, filled + nbytes[end]]}
            filled += nbytes[end]
            end += 1
        # Six digits after "of", as DeepSeek names its shards.
        file = f"model-{number:05}-of-{sizes.shards:06}.safetensors"
        weight_map |= dict.fromkeys(header, file)
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        text += b" " * (-len(text) % 8)
        with (directory / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + filled)
        begin = end
    assert begin == len(tensors)
    index = {"metadata": {"total_size": sum(nbytes)}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(_config(sizes)))
    return sum(nbytes)


def gguf_tensors(sizes: Sizes) -> Iterator[tuple[str, str, Shape]]:
    """Name, type and shape of each tensor of a small quantisation of a V3, kv_b split."""
    d, heads, q_lora = sizes.hidden, sizes.heads, sizes.q_lora
    assert q_lora is not None
    yield "token_embd.weight", "Q4_K", (sizes.vocab, d)
    yield "output_norm.weight", "F32", (d,)
    yield "output.weight", "Q6_K", (sizes.vocab, d)
    for layer in range(sizes.layers):
        block = f"blk.{layer}"
        for name, size in {"attn_norm": d, "ffn_norm": d, "attn_q_a_norm": q_lora}.items():
            yield f"{block}.{name}.weight", "F32", (size,)
        yield f"{block}.attn_kv_a_norm.weight", "F32", (sizes.kv_lora,)
        yield f"{block}.attn_q_a.weight", "Q4_K", (q_lora, d)
        yield f"{block}.attn_q_b.weight", "Q4_K", (heads * (sizes.nope + sizes.rope), q_lora)
        yield f"{block}.attn_kv_a_mqa.weight", "Q6_K", (sizes.kv_lora + sizes.rope, d)
        yield f"{block}.attn_k_b.weight", "Q8_0", (heads, sizes.kv_lora, sizes.nope)
        yield f"{block}.attn_v_b.weight", "Q6_K", (heads, sizes.value, sizes.kv_lora)
        yield f"{block}.attn_output.weight", "Q4_K", (d, heads * sizes.value)
        if layer < sizes.dense:
            for name, shape in _projections(sizes, sizes.intermediate).items():
                kind = name.removesuffix("_proj")
                yield f"{block}.ffn_{kind}.weight", "Q6_K" if kind == "down" else "Q4_K", shape
            continue
        yield f"{block}.ffn_gate_inp.weight", "F32", (sizes.experts, d)
        yield f"{block}.exp_probs_b.bias", "F32", (sizes.experts,)
        for name, shape in _projections(sizes, sizes.moe_intermediate).items():
            kind = name.removesuffix("_proj")
            yield f"{block}.ffn_{kind}_exps.weight", "Q4_K" if kind == "down" else "IQ1_S", (sizes.experts, *shape)
            yield f"{block}.ffn_{kind}_shexp.weight", "Q6_K" if kind == "down" else "Q4_K", shape


def gguf_keys(sizes: Sizes) -> dict[str, Any]:
    """The metadata of a V3."""
    values = {
        "block_count": sizes.layers, "context_length": 163840, "embedding_length": sizes.hidden,
        "feed_forward_length": sizes.intermediate, "attention.head_count": sizes.heads, "attention.head_count_kv": 1,
        "rope.freq_base": 10000.0, "attention.layer_norm_rms_epsilon": 1e-6, "expert_used_count": 8,
        "leading_dense_block_count": sizes.dense, "vocab_size": sizes.vocab, "attention.q_lora_rank": sizes.q_lora,
        "attention.kv_lora_rank": sizes.kv_lora, "attention.key_length": sizes.kv_lora + sizes.rope,
        "attention.value_length": sizes.kv_lora, "attention.key_length_mla": sizes.nope + sizes.rope,
        "attention.value_length_mla": sizes.value, "expert_feed_forward_length": sizes.moe_intermediate,
        "expert_count": sizes.experts, "expert_shared_count": sizes.shared, "expert_weights_scale": 2.5,
        "expert_weights_norm": True, "expert_gating_func": 2, "expert_group_count": 8, "expert_group_used_count": 4,
        "rope.dimension_count": sizes.rope, "rope.scaling.type": "yarn", "rope.scaling.factor": 40.0,
        "rope.scaling.original_context_length": 4096, "rope.scaling.yarn_log_multiplier": 0.1,
    }  # fmt: skip
    return {f"deepseek2.{key}": value for key, value in values.items()}


def write_gguf(directory: Path, sizes: Sizes, tokenizer: dict[str, Any], shards: int = 3) -> list[Path]:
    """Write the shards; `tokenizer` are its keys. Returns them in order."""
    tensors = list(gguf_tensors(sizes))
    size = -(-len(tensors) // shards)
    paths = []
    for number in range(shards):
        path = directory / f"DeepSeek-R1-IQ1_S-{number + 1:05}-of-{shards:05}.gguf"
        writer = GGUFWriter(path, "deepseek2")
        keys: dict[str, Any] = {"split.no": number, "split.count": shards, "split.tensors.count": len(tensors)}
        for key, value in (gguf_keys(sizes) | tokenizer | keys if number == 0 else keys).items():
            _add_key(writer, key, value)
        total = 0
        for name, kind, shape in tensors[number * size : (number + 1) * size]:
            code = None if kind == "F32" else GGMLQuantizationType[kind]
            elements, block = GGML_QUANT_SIZES[code or GGMLQuantizationType.F32]
            nbytes = int(np.prod(shape)) // elements * block
            stored = shape if code is None else (*shape[:-1], shape[-1] // elements * block)
            dtype = np.dtype(np.float32 if code is None else np.uint8)
            writer.add_tensor_info(name, stored, dtype, nbytes, raw_dtype=code)
            total += -(-nbytes // 32) * 32
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with path.open("r+b") as out:
            out.truncate(-(-path.stat().st_size // 32) * 32 + total)
        paths.append(path)
    return paths


def _add_key(writer: GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: GGUFValueType.BOOL, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}
    if isinstance(value, list):
        writer.add_array(key, value)
    elif key.startswith("split.tensors"):
        writer.add_key_value(key, value, GGUFValueType.INT32)
    elif key.startswith("split."):
        writer.add_key_value(key, value, GGUFValueType.UINT16)
    else:
        writer.add_key_value(key, value, kinds.get(type(value), GGUFValueType.UINT32))
