"""Write a GGUF file of a published model's shape with random weights, for measurements of speed.

    python benchmarks/synthetic_gguf.py llama-8b q4_k_m llama-8b.gguf [--layers N]

The shape is the plugin's, the types are those of llama.cpp's mixture (zoo.weights.forms). Names, keys and blocks are
put together here, so that llama.cpp and zoo both have to find them right. The vocabulary has as many tokens and merges
as the model's own; its words mean nothing. llama.cpp knows V2-Lite by its 27 layers: with --layers only zoo reads it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, TokenType
from numpy.typing import NDArray

from zoo.errors import UsageError, ZooError
from zoo.plugin.manager import PluginManager
from zoo.settings import Settings
from zoo.weights.forms import Form, form
from zoo.weights.synthetic import SCALES

MODELS = ("llama-1b", "llama-8b", "deepseek-v2-lite")
_STD = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("form", help="q4_k_m, q5_k_m, q8_0, iq4_xs, ...")
    parser.add_argument("path", type=Path)
    parser.add_argument("--layers", type=int, help="only so many of its layers")
    args = parser.parse_args()
    try:
        written = write(args.path, args.model, args.form, layers=args.layers)
    except (ZooError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.path}: {written / 1e9:.2f} GB")
    return 0


def write(path: Path, model: str, form_name: str, *, layers: int | None = None, **sizes: int) -> int:
    """Write a file and return its bytes. `sizes` replaces keys of the configuration (hidden_size=256).

    Raises UsageError for an unknown model or form, or more layers than the model has. A failed write leaves no file.
    """
    chosen, config = form(form_name), _config(model, layers, sizes)
    architecture = "llama" if config["model_type"] == "llama" else "deepseek2"
    tensors = {name: (target, shape) for name, target, shape in _tensors(config)}
    types = {name: _type(chosen, target, shape, config) for name, (target, shape) in tensors.items()}
    part = path.with_name(path.name + ".part")
    try:
        _write(part, architecture, {**_keys(config, architecture), **_tokenizer(config)}, tensors, types, config)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return path.stat().st_size


def _write(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    types: Mapping[str, GGMLQuantizationType],
    config: Mapping[str, Any],
) -> None:
    writer = GGUFWriter(path, architecture)
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
    for name, (_, shape) in tensors.items():
        writer.add_tensor_info(name, shape, np.dtype(np.float32), _nbytes(types[name], shape), types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    # One tensor is in memory at a time.
    for name, (_, shape) in tensors.items():
        writer.write_tensor_data(_values(name, types[name], shape, config, random))
    writer.close()


def _config(model: str, layers: int | None, sizes: Mapping[str, int]) -> dict[str, Any]:
    published = PluginManager.discover(Settings.from_env()).published()
    if model not in MODELS or model not in published:
        raise UsageError(f"there is no shape {model!r}", remedy=f"use {', '.join(MODELS)}, their plugins installed")
    config = dict(published[model])
    whole = config["num_hidden_layers"]
    if layers is not None and not 1 <= layers <= whole:
        raise UsageError(f"the model has {whole} layers, not {layers}", remedy=f"use --layers 1 to {whole}")
    return {**config, "num_hidden_layers": layers or whole, **sizes}


def _type(chosen: Form, target: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> GGMLQuantizationType:
    tied = bool(config.get("tie_word_embeddings"))
    kind = chosen.type_of(target, shape, config["num_hidden_layers"], tied=tied)
    try:
        return GGMLQuantizationType[kind]
    except KeyError:
        raise UsageError(f"GGUF has no type {kind}", remedy="use q4_k_m, q5_k_m, q8_0 or iq4_xs") from None


def _nbytes(kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    elements, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // elements * size


def _values(
    name: str,
    kind: GGMLQuantizationType,
    shape: tuple[int, ...],
    config: Mapping[str, Any],
    random: np.random.Generator,
) -> NDArray[Any]:
    """Norms of 1, frequencies of the configuration, normal floats, or random blocks with scales that suit."""
    if name == "rope_freqs.weight":
        return _llama3_divisors(config)
    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        floats = random.standard_normal(shape, np.float32) * np.float32(_STD)
        return floats if kind == GGMLQuantizationType.F32 else floats.astype(np.float16)
    if kind == GGMLQuantizationType.BF16:
        return (random.standard_normal(shape, np.float32) * np.float32(_STD)).view(np.uint16)[..., 1::2].copy()
    count = _nbytes(kind, shape)
    blocks = np.frombuffer(bytearray(random.bytes(count)), np.uint8).reshape(-1, GGML_QUANT_SIZES[kind][1])
    for offset, scale in SCALES[kind.name]:
        blocks[:, offset : offset + 2] = np.array([scale], np.float16).view(np.uint8)
    return blocks


def _tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name in the file, name in the model (which decides the type) and shape of each tensor."""
    width, vocab = config["hidden_size"], config["vocab_size"]
    yield "token_embd.weight", "model.embed_tokens.weight", (vocab, width)
    yield "output_norm.weight", "model.norm.weight", (width,)
    if not config.get("tie_word_embeddings"):
        yield "output.weight", "lm_head.weight", (vocab, width)
    if (config.get("rope_scaling") or {}).get("rope_type") == "llama3":
        yield "rope_freqs.weight", "rope_freqs", (config["head_dim"] // 2,)
    block = _llama_layer if config["model_type"] == "llama" else _deepseek_layer
    for layer in range(config["num_hidden_layers"]):
        for name, target, shape in block(config, layer):
            yield f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{target}", shape


def _llama_layer(config: Mapping[str, Any], layer: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    width, head = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "attn_norm", "input_layernorm.weight", (width,)
    yield "attn_q", "self_attn.q_proj.weight", (queries, width)
    yield "attn_k", "self_attn.k_proj.weight", (keys, width)
    yield "attn_v", "self_attn.v_proj.weight", (keys, width)
    yield "attn_output", "self_attn.o_proj.weight", (width, queries)
    yield "ffn_norm", "post_attention_layernorm.weight", (width,)
    yield from _mlp("", "mlp", width, config["intermediate_size"])


def _deepseek_layer(config: Mapping[str, Any], layer: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """DeepSeek without a query rank (V2-Lite), the up-projection of latents split as in today's files."""
    width, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    yield "attn_norm", "input_layernorm.weight", (width,)
    yield "attn_q", "self_attn.q_proj.weight", (heads * (nope + rope), width)
    yield "attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa.weight", (rank + rope, width)
    yield "attn_kv_a_norm", "self_attn.kv_a_layernorm.weight", (rank,)
    yield "attn_k_b", "self_attn.k_b_proj", (heads, rank, nope)
    yield "attn_v_b", "self_attn.v_b_proj", (heads, value, rank)
    yield "attn_output", "self_attn.o_proj.weight", (width, heads * value)
    yield "ffn_norm", "post_attention_layernorm.weight", (width,)
    if layer < config["first_k_dense_replace"]:
        yield from _mlp("", "mlp", width, config["intermediate_size"])
        return
    experts, inner = config["n_routed_experts"], config["moe_intermediate_size"]
    yield "ffn_gate_inp", "mlp.gate.weight", (experts, width)
    yield "ffn_gate_exps", "mlp.experts.gate_proj", (experts, inner, width)
    yield "ffn_up_exps", "mlp.experts.up_proj", (experts, inner, width)
    yield "ffn_down_exps", "mlp.experts.down_proj", (experts, width, inner)
    yield from _mlp("_shexp", "mlp.shared_experts", width, inner * config["n_shared_experts"])


def _mlp(suffix: str, module: str, width: int, inner: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield f"ffn_gate{suffix}", f"{module}.gate_proj.weight", (inner, width)
    yield f"ffn_up{suffix}", f"{module}.up_proj.weight", (inner, width)
    yield f"ffn_down{suffix}", f"{module}.down_proj.weight", (width, inner)


def _keys(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    common: dict[str, Any] = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
    }
    if architecture == "llama":
        own: dict[str, Any] = {
            "attention.head_count_kv": config["num_key_value_heads"],
            "rope.dimension_count": config["head_dim"],
            "attention.key_length": config["head_dim"],
            "attention.value_length": config["head_dim"],
        }
    else:
        own = _deepseek_keys(config)
    return {f"{architecture}.{key}": value for key, value in {**common, **own}.items()}


def _deepseek_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    rank, rope, scaling = config["kv_lora_rank"], config["qk_rope_head_dim"], config["rope_scaling"]
    return {
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rope,
        "attention.value_length_mla": config["v_head_dim"],
        "rope.dimension_count": rope,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(scaling["factor"]),
        "rope.scaling.original_context_length": scaling["original_max_position_embeddings"],
        "rope.scaling.yarn_log_multiplier": 0.1 * scaling["mscale_all_dim"],
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": bool(config["norm_topk_prob"]),
        "expert_gating_func": 1,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
    }


def _llama3_divisors(config: Mapping[str, Any]) -> NDArray[np.float32]:
    """What Llama 3.1's scaling divides each rotary frequency by."""
    rope, half = config["rope_scaling"], config["head_dim"] // 2
    wavelengths = 2 * np.pi * config["rope_theta"] ** (np.arange(half) / half)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (rope["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    smooth = np.clip(smooth, 0.0, 1.0)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def _tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """A byte-level BPE: the bytes, pairs and triples of them with a merge each, two control tokens at the end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    pairs = [(left, right) for left in letters for right in letters]
    triples = ((left + right, third) for left, right in pairs for third in letters)
    room = config["vocab_size"] - 2 - len(letters)
    assert room > 0, "the vocabulary holds every byte and two control tokens"
    merges = pairs[:room]
    merges += [next(triples) for _ in range(room - len(merges))]
    tokens = [*letters, *(left + right for left, right in merges), "<|begin|>", "<|end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe" if config["model_type"] == "llama" else "deepseek-llm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(TokenType.NORMAL)] * (len(tokens) - 2) + [int(TokenType.CONTROL)] * 2,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.add_bos_token": True,
    }


if __name__ == "__main__":
    sys.exit(main())
