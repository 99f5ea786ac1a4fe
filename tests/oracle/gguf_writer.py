"""GGUF files as llama.cpp's converter makes them, written with the `gguf` package from models of transformers.

    contents = llama_contents(model)              # keys and float32 tensors, to be changed at will
    write(path, contents, types="Q4_K")           # or types={"blk.0.attn_v.weight": "Q6_K", ...}

It knows nothing of zoo: names and row orders here are a second statement of the format, to hold zoo's tables against.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, TokenType
from gguf.quants import dequantize
from numpy.typing import NDArray
from transformers import PreTrainedModel

from oracle.checkpoints import CONTROL_TOKENS, vocabulary
from oracle.ggml import quantize

Floats = NDArray[np.float32]

_VALUE_TYPES = {bool: GGUFValueType.BOOL, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}


@dataclass
class Contents:
    """What a file will hold. `keys`: full names; ints become u32. `tensors`: float32 in torch's order of dimensions.

    `blocks`: tensors that are written as these bytes, [..., row_bytes] of a type; `tensors` has them unpacked.
    """

    architecture: str
    keys: dict[str, Any]
    tensors: dict[str, Floats]
    blocks: dict[str, tuple[str, NDArray[np.uint8]]] = field(default_factory=dict)


def llama_contents(model: PreTrainedModel) -> Contents:
    """A Llama of transformers as the converter sees it: q and k rows reordered, Llama 3's scaling as a tensor."""
    config, state = model.config, {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        tensors["output.weight"] = state["lm_head.weight"]
    if config.rope_parameters["rope_type"] == "llama3":
        tensors["rope_freqs.weight"] = rope_divisors(model)
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for layer in range(config.num_hidden_layers):
        for module, short in names.items():
            for kind in ("weight", "bias"):
                value = state.get(f"model.layers.{layer}.{module}.{kind}")
                if value is not None:
                    count = {"attn_q": heads, "attn_k": kv_heads}.get(short)
                    tensors[f"blk.{layer}.{short}.{kind}"] = value if count is None else pair_rows(value, count)
    return Contents("llama", {**_llama_keys(config), **tokenizer_keys()}, tensors)


def pair_rows(rows: Floats, heads: int) -> Floats:
    """Reorder the rows of each head from (first halves, second halves) to pairs that lie side by side."""
    order = np.arange(len(rows)).reshape(heads, 2, -1).transpose(0, 2, 1).ravel()
    return np.ascontiguousarray(rows[order])


def rope_divisors(model: PreTrainedModel) -> Floats:
    """What Llama 3's scaling divides each frequency by, from the frequencies that transformers computed."""
    scaled = model.model.rotary_emb.inv_freq.double()
    half, theta = len(scaled), model.config.rope_parameters["rope_theta"]
    plain = theta ** -(torch.arange(half, dtype=torch.float64) / half)
    return (plain / scaled).float().numpy()


def fuse_qkv(contents: Contents) -> None:
    """Put q, k and v of each layer, weights and biases, into one tensor, as the converter's --fuse-qkv does."""
    for name in [name for name in contents.tensors if ".attn_q." in name]:
        parts = [contents.tensors.pop(name.replace("attn_q", f"attn_{part}")) for part in "qkv"]
        contents.tensors[name.replace("attn_q", "attn_qkv")] = np.concatenate(parts)


def tokenizer_keys() -> dict[str, Any]:
    """The tiny vocabulary of the checkpoints."""
    tokens, merges = vocabulary()
    control = len(CONTROL_TOKENS)
    types = [int(TokenType.CONTROL)] * control + [int(TokenType.NORMAL)] * (len(tokens) - control)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }


def packed(rows: Floats, type_name: str) -> NDArray[np.uint8]:
    """Rows as ggml packs them, uint8 [..., row_bytes]."""
    kind = GGMLQuantizationType[type_name]
    elements, size = GGML_QUANT_SIZES[kind]
    assert rows.shape[-1] % elements == 0, f"{type_name} packs {elements} elements, a row has {rows.shape[-1]}"
    flat = quantize(rows.reshape(-1, rows.shape[-1]), int(kind), rows.shape[-1] // elements * size)
    return flat.reshape(*rows.shape[:-1], -1)


def fill_with_blocks(contents: Contents, kind: str, names: Iterable[str]) -> None:
    """Replace tensors by random blocks of a type, as large as they were: no quantiser is needed, and that of ggml takes
    20 s to prepare for IQ1_S. Rows must be whole blocks.
    """
    draw = np.random.default_rng(len(contents.tensors))
    code = GGMLQuantizationType[kind]
    elements, size = GGML_QUANT_SIZES[code]
    for name in names:
        value = contents.tensors[name]
        blocks = draw.integers(0, 256, (value.size // elements, size), np.uint8)
        _set_scales(blocks, kind, np.ones(len(blocks), np.float16))
        unit = dequantize(blocks[:64], code).std()
        scales = value.std() / unit * draw.uniform(0.7, 1.3, len(blocks))
        _set_scales(blocks, kind, scales.astype(np.float16))
        data = blocks.reshape(*value.shape[:-1], -1)
        contents.blocks[name] = kind, data
        contents.tensors[name] = dequantize(data, code).reshape(value.shape)


def _set_scales(blocks: NDArray[np.uint8], kind: str, scales: NDArray[np.float16]) -> None:
    """The float16 that scales a block: its first two bytes, in IQ1_M the upper four bits of each of the last words."""
    if kind != "IQ1_M":
        assert kind in ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S"), kind
        blocks[:, :2] = scales.view(np.uint8).reshape(-1, 2)
        return
    bits = scales.view(np.uint16)
    for word in range(4):
        nibble = (bits >> (4 * word) & 15).astype(np.uint8)
        high = blocks.shape[1] - 7 + 2 * word
        blocks[:, high] = blocks[:, high] & 15 | nibble << 4


def rounded(contents: Contents, types: str | Mapping[str, str]) -> Contents:
    """The same contents, each tensor as gguf-py unpacks it after ggml has packed it."""
    tensors = dict(contents.tensors)
    for name, value in tensors.items():
        if name not in contents.blocks and (kind := type_of(name, value, types)) != "F32":
            tensors[name] = dequantize(packed(value, kind), GGMLQuantizationType[kind]).reshape(value.shape)
    return Contents(contents.architecture, dict(contents.keys), tensors)


def unpacked(path: Path) -> Contents:
    """The contents of a file, its tensors unpacked by gguf-py: written anew, it is the same model without rounding."""
    reader = GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {
        item.name: dequantize(item.data, item.tensor_type).reshape([int(n) for n in reversed(item.shape)])
        for item in reader.tensors
    }
    return Contents(keys.pop("general.architecture"), keys, tensors)


def type_of(name: str, value: Floats, types: str | Mapping[str, str]) -> str:
    """The type a tensor is written in: norms, biases and other vectors are never packed."""
    if value.ndim == 1:
        return "F32"
    return types if isinstance(types, str) else types.get(name, "F32")


def write(
    path: Path, contents: Contents, *, types: str | Mapping[str, str] = "F32", split_max_tensors: int = 0
) -> list[Path]:
    """Write a file, or a split set of `split_max_tensors` tensors each; returns the files in order."""
    writer = GGUFWriter(path, contents.architecture, split_max_tensors=split_max_tensors)
    for key, value in contents.keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, _VALUE_TYPES.get(type(value), GGUFValueType.UINT32))
    for name, tensor in contents.tensors.items():
        kind = type_of(name, tensor, types)
        if name in contents.blocks:
            kind, data = contents.blocks[name]
            writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind])
        elif kind == "F32":
            writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
        else:
            writer.add_tensor(name, packed(tensor, kind), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf")) if split_max_tensors else [path]
    assert files, f"nothing was written at {path}"
    return files


def _llama_keys(config: Any) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    if config.rope_parameters["rope_type"] == "linear":
        keys["llama.rope.scaling.type"] = "linear"
        keys["llama.rope.scaling.factor"] = float(config.rope_parameters["factor"])
    return keys
