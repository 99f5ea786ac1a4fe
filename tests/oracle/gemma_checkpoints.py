"""Tiny random Gemmas, written by transformers: each peculiarity of the three generations.

model = save_gemma(directory, "gemma3")       # float32, in eval mode, eager attention
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    PretrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)

from oracle.checkpoints import VOCAB_SIZE, randomise, save_checkpoint, tiny_tokenizer

WINDOW = 16

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2,
}  # fmt: skip
_GEMMA1 = {"num_hidden_layers": 3, "num_key_value_heads": 1}
# Caps near the size of what they cap: at 50 and 30 they would hardly be felt in a tiny model.
_GEMMA2 = {
    "num_hidden_layers": 4, "sliding_window": WINDOW, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0,
    "query_pre_attn_scalar": 32,
}  # fmt: skip
_GEMMA3 = {"num_hidden_layers": 7, "sliding_window": WINDOW, "query_pre_attn_scalar": 32}
ROPE3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
_DEEP = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
_WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}

VARIANTS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "gemma1": (GemmaConfig, _GEMMA1),
    "gemma1 multi-head": (GemmaConfig, {**_GEMMA1, "num_key_value_heads": 4}),
    "gemma1 untied": (GemmaConfig, {**_GEMMA1, "tie_word_embeddings": False}),
    "gemma1 eps": (GemmaConfig, {**_GEMMA1, "rms_norm_eps": 0.1}),
    "gemma2": (Gemma2Config, _GEMMA2),
    "gemma2 as published": (
        Gemma2Config, {**_GEMMA2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    ),
    "gemma2 theta": (
        Gemma2Config, {**_GEMMA2, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    ),
    "gemma3": (Gemma3TextConfig, _GEMMA3),
    "gemma3 linear": (Gemma3TextConfig, {**_GEMMA3, "rope_parameters": ROPE3}),
    "gemma3 pattern": (Gemma3TextConfig, {**_GEMMA3, "num_hidden_layers": 4, "sliding_window_pattern": 3}),
    "gemma3 thetas": (
        Gemma3TextConfig,
        {
            **_GEMMA3,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "gemma3 capped": (Gemma3TextConfig, {**_GEMMA3, "final_logit_softcapping": 6.0}),
}  # fmt: skip

# query_pre_attn_scalar is not the head dimension: in GGUF only the number of layers tells.
SCALARS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "gemma2 scalar": (Gemma2Config, {**_GEMMA2, "query_pre_attn_scalar": 12}),
    "gemma3 scalar": (Gemma3TextConfig, {**_GEMMA3, "query_pre_attn_scalar": 12}),
}
LARGEST: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "gemma2 27b": (
        Gemma2Config, {**_GEMMA2, "num_hidden_layers": 46, "query_pre_attn_scalar": 16, **_DEEP}
    ),
    "gemma3 27b": (
        Gemma3TextConfig, {**_GEMMA3, "num_hidden_layers": 62, "query_pre_attn_scalar": 16, **_DEEP}
    ),
}  # fmt: skip
WIDE: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "gemma1 wide": (GemmaConfig, {**_GEMMA1, **_WIDE, "num_hidden_layers": 2}),
    "gemma2 wide": (Gemma2Config, {**_GEMMA2, **_WIDE, "query_pre_attn_scalar": 64, "num_hidden_layers": 2}),
    "gemma3 wide": (Gemma3TextConfig, {**_GEMMA3, **_WIDE, "query_pre_attn_scalar": 64, "num_hidden_layers": 6}),
}
ALL = {**VARIANTS, **SCALARS, **LARGEST, **WIDE}


def gemma_config(variant: str, **changes: Any) -> PretrainedConfig:
    kind, values = ALL[variant]
    merged = {**_BASE, **values, **changes}
    # 0.2 at 64 columns, and logits as large at others.
    merged.setdefault("initializer_range", 1.6 / merged["hidden_size"] ** 0.5)
    return kind(**merged)


def save_gemma(directory: Path, variant: str, *, seed: int = 0, max_shard_size: str = "1GB", **changes: Any) -> Any:
    """Write a checkpoint; returns the float32 model with eager attention, without which caps are dropped."""
    return save_checkpoint(directory, gemma_config(variant, **changes), seed=seed, max_shard_size=max_shard_size)


def save_multimodal(directory: Path, *, seed: int = 0) -> PreTrainedModel:
    """A Gemma 3 that sees images, its text model being the variant "gemma3 linear"."""
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=7
    )
    config = Gemma3Config(
        text_config=gemma_config("gemma3 linear").to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4,
        eos_token_id=[1, 2], image_token_index=VOCAB_SIZE - 1, boi_token_index=VOCAB_SIZE - 2,
        eoi_token_index=VOCAB_SIZE - 3, bos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = Gemma3ForConditionalGeneration(config)
    randomise(model)
    model.eval().save_pretrained(directory)
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    return model
