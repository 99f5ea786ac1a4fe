"""Tiny random Mistrals of every kind, written by transformers, and Mistral's own layout made of them.

Windows and original contexts are short, so that 100 tokens go past them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    Ministral3Config,
    MinistralConfig,
    Mistral3Config,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from oracle.checkpoints import VOCAB_SIZE, randomise, tiny_tokenizer
from oracle.tekken import write_tekken

WINDOW = 20
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_CLASSES = {
    "mistral": MistralConfig,
    "ministral": MinistralConfig,
    "ministral3": Ministral3Config,
    "mixtral": MixtralConfig,
}
PATTERN = ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"]
_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 48}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "7B v0.1": ("mistral", {"sliding_window": WINDOW}),
    "7B v0.3": ("mistral", {"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "Nemo": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "tied": ("mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    "Ministral 8B": ("ministral", {"head_dim": 16, "sliding_window": WINDOW, "layer_types": PATTERN}),
    "Ministral without types": ("ministral", {"head_dim": 16, "sliding_window": WINDOW}),
    "Ministral 3": ("ministral3", {"head_dim": 24, "rope_parameters": YARN}),
    "Ministral 3 mscale": ("ministral3", {"head_dim": 16, "rope_parameters": {**YARN, "mscale_all_dim": 0.5}}),
    "Ministral 3 window": ("ministral3", {"head_dim": 16, "sliding_window": WINDOW, "rope_parameters": YARN}),
    "Mixtral 8x7B": ("mixtral", _EXPERTS),
    "Mixtral window": ("mixtral", {**_EXPERTS, "sliding_window": WINDOW}),
    "Mixtral 4 of 3": ("mixtral", {**_EXPERTS, "num_local_experts": 4, "num_experts_per_tok": 3, "head_dim": 24}),
}


def mistral_config(variant: str, **changes: Any) -> PretrainedConfig:
    """The configuration of a variant; `changes` are keys of its class."""
    kind, values = VARIANTS[variant]
    return _CLASSES[kind](**{**_SIZES, **values, **changes})


def wrapper_config(variant: str, *, tied: bool) -> Mistral3Config:
    """A model of text and images around a variant, with the smallest of eyes."""
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 8, "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    text = mistral_config(variant, tie_word_embeddings=tied).to_dict()
    return Mistral3Config(
        text_config=text, vision_config=vision, tie_word_embeddings=tied, image_token_index=5, spatial_merge_size=1
    )


def save_wrapper(directory: Path, variant: str, *, tied: bool, seed: int = 0) -> PreTrainedModel:
    """Write a random wrapper; returns the float32 model, whose logits of text alone are those of its text part."""
    torch.manual_seed(seed)
    config = wrapper_config(variant, tied=tied)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="eager")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.2)
    randomise(model)
    model.eval().save_pretrained(directory)
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    return model


def expert_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each expert's matrices under the names of the files, from the stacked ones of the modules."""
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(".mlp.experts.gate_up_proj"):
            stem = name.replace("mlp.experts.gate_up_proj", "block_sparse_moe.experts")
            for expert, rows in enumerate(value):
                result[f"{stem}.{expert}.w1.weight"], result[f"{stem}.{expert}.w3.weight"] = rows.chunk(2)
        elif name.endswith(".mlp.experts.down_proj"):
            stem = name.replace("mlp.experts.down_proj", "block_sparse_moe.experts")
            for expert, rows in enumerate(value):
                result[f"{stem}.{expert}.w2.weight"] = rows
        else:
            result[name.replace(".mlp.gate.weight", ".block_sparse_moe.gate.weight")] = value
    return result


def save_consolidated(directory: Path, model: PreTrainedModel, **changes: Any) -> None:
    """Write the model as Mistral does: params.json, consolidated.safetensors, tekken.json.

    Here q and k have their rows in pairs, and the vision part goes by other names. `changes` are keys of params.json.
    """
    config = model.config
    words = {
        "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
        "block_sparse_moe": "feed_forward",
    }  # fmt: skip
    tensors = {}
    for name, value in expert_names(model.state_dict()).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        count = next((count for part, count in heads.items() if part in name), None)
        if count is not None:
            value = value.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        for old, new in words.items():
            name = name.replace(old, new)
        tensors[name] = value.contiguous()
    tensors["vision_encoder.ln_pre.weight"] = torch.ones(4)
    tensors["patch_merger.merging_layer.weight"] = torch.ones(4, 4)
    save_file(tensors, directory / "consolidated.safetensors")
    (directory / "params.json").write_text(json.dumps({**params(config), **changes}))
    write_tekken(directory)


def params(config: PretrainedConfig) -> dict[str, Any]:
    """What params.json says of a configuration."""
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values: dict[str, Any] = {
        "dim": config.hidden_size, "n_layers": config.num_hidden_layers, "head_dim": head_dim,
        "hidden_dim": config.intermediate_size, "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads, "norm_eps": config.rms_norm_eps, "vocab_size": config.vocab_size,
        "rope_theta": rope["rope_theta"], "max_position_embeddings": config.max_position_embeddings,
    }  # fmt: skip
    if config.tie_word_embeddings:
        values["tied_embeddings"] = True
    if getattr(config, "layer_types", None) == PATTERN:
        values["_sliding_window"] = [None, *[config.sliding_window] * 3]
    elif config.sliding_window is not None:
        values["sliding_window"] = config.sliding_window
    if rope["rope_type"] == "yarn":
        original = rope["original_max_position_embeddings"]
        values["yarn"] = {
            "beta": rope["beta_fast"], "alpha": rope["beta_slow"], "factor": rope["factor"],
            "original_max_position_embeddings": original, "apply_scale": False,
        }  # fmt: skip
        beta = rope["llama_4_scaling_beta"]
        values["llama_4_scaling"] = {"beta": beta, "original_max_position_embeddings": original}
    if config.model_type == "mixtral":
        values["moe"] = {"num_experts": config.num_local_experts, "num_experts_per_tok": config.num_experts_per_tok}
    return values
