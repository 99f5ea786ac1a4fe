"""Tiny Phis of transformers with the peculiarities of the published ones."""

from __future__ import annotations

from typing import Any

from transformers import Phi3Config, PhiConfig, PhimoeConfig

from oracle.checkpoints import VOCAB_SIZE

ORIGINAL = 64
CONTEXT = 256


def _common(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        **changes,
    }
    # 0.2 at 64 columns, and the same logits at others: their deviation grows with the root of the width.
    values.setdefault("initializer_range", 1.6 / values["hidden_size"] ** 0.5)
    return values


def longrope(dim: int, **changes: Any) -> dict[str, Any]:
    """Two sets of factors for `dim` rotated dimensions, far apart from each other and from 1."""
    pairs = range(dim // 2)
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.15 * i for i in pairs],
        "long_factor": [1.5 + 1.5 * i for i in pairs],
        **changes,
    }


def phi2_config(**changes: Any) -> PhiConfig:
    """Phi-2: 0.4 of each head is rotated; its converter writes 4 x hidden_size for the MLP."""
    common = _common(**changes)
    return PhiConfig(**{"partial_rotary_factor": 0.4, "intermediate_size": 4 * common["hidden_size"], **common})


def phi3_config(**changes: Any) -> Phi3Config:
    """Phi-3 of 4k context: no scaling, grouped queries."""
    return Phi3Config(**_common(**{"intermediate_size": 96, "num_key_value_heads": 2, **changes}))


def phi3_long_config(**changes: Any) -> Phi3Config:
    """Phi-3.5-mini: LongRoPE over whole heads, a window longer than the context."""
    return phi3_config(
        **{
            "original_max_position_embeddings": ORIGINAL,
            "rope_parameters": longrope(20),
            "sliding_window": 2 * CONTEXT,
            **changes,
        }
    )


def phi4_mini_config(**changes: Any) -> Phi3Config:
    """Phi-4-mini: LongRoPE over 0.8 of each head (0.75 of 20 is no number of pairs), a tied head."""
    rope = longrope(16, partial_rotary_factor=0.8)
    return phi3_long_config(**{"rope_parameters": rope, "tie_word_embeddings": True, **changes})


def phimoe_config(**changes: Any) -> PhimoeConfig:
    """Phi-3.5-MoE: 2 of 8 experts, biases, LongRoPE with its own multipliers of cosine and sine."""
    rope = longrope(20, short_mscale=1.2, long_mscale=1.3, original_max_position_embeddings=ORIGINAL)
    values = {
        "intermediate_size": 48,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "attention_bias": True,
        "lm_head_bias": True,
        "rope_parameters": rope,
        **changes,
    }
    return PhimoeConfig(**_common(**values))
