"""The configurations of the Phi family, from config.json or from GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from zoo.errors import ConfigError
from zoo.kernels import Routing
from zoo.nn import RopeParameters
from zoo.plugin import ConfigReader, ModelSource

# What both Phi-3 models of 4k context were made with; files of their first months lack the key.
_PHI3_4K = (4096, 2047)


class PhiConfig(BaseModel):
    """Sizes that every Phi has, under their config.json names."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float
    tie_word_embeddings: bool
    rope: RopeParameters
    eos_token_ids: tuple[int, ...]


class Phi2Config(PhiConfig):
    """Phi-1, Phi-1.5 and Phi-2: `norm_eps` is layer_norm_eps."""

    @classmethod
    def from_hf(cls, source: ModelSource) -> Phi2Config:
        """From config.json.

        Raises ConfigError for a missing or impossible value, an activation other than GELU's tanh form and norms on
        queries and keys, which no published Phi has.
        """
        read = ConfigReader.hf(source)
        read.require("hidden_act", "gelu_new", "gelu_pytorch_tanh", default="gelu_new")
        read.require("qk_layernorm", False, default=False)
        sizes = _hf_sizes(read)
        return cls(
            **sizes,
            max_position_embeddings=read.size("max_position_embeddings", default=2048),
            norm_eps=read.number("layer_norm_eps", default=1e-5),
            rope=RopeParameters.from_hf(source, dim=_rotated(read, sizes["head_dim"], default=0.5)),
        )

    @classmethod
    def from_gguf(cls, source: ModelSource) -> Phi2Config:
        """From GGUF metadata. Raises ConfigError for a missing or impossible value."""
        read = ConfigReader.gguf(source)
        sizes = _gguf_sizes(read)
        return cls(
            **sizes,
            norm_eps=read.number(".attention.layer_norm_epsilon"),
            rope=_gguf_rope(read, sizes["head_dim"]),
        )


class Phi3Config(PhiConfig):
    """Phi-3, Phi-3.5-mini, Phi-4 and Phi-4-mini: `norm_eps` is rms_norm_eps.

    `sliding_window`: keys that a query sees, itself included; None where the window is no shorter than the context.
    """

    sliding_window: int | None

    @classmethod
    def from_hf(cls, source: ModelSource) -> Phi3Config:
        """From config.json. Raises ConfigError for a missing or impossible value, biases and unknown activations."""
        read = ConfigReader.hf(source)
        read.require("hidden_act", "silu", default="silu")
        for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
            read.require(key, False, default=False)
        sizes = _hf_sizes(read)
        context = read.size("max_position_embeddings", default=4096)
        return cls(
            **sizes,
            max_position_embeddings=context,
            norm_eps=read.number("rms_norm_eps", default=1e-5),
            rope=RopeParameters.from_hf(source, dim=_rotated(read, sizes["head_dim"], default=1.0)),
            sliding_window=_window(read.count("sliding_window", default=0), context),
        )

    @classmethod
    def from_gguf(cls, source: ModelSource) -> Phi3Config:
        """From GGUF metadata. Raises ConfigError for a missing or impossible value."""
        read = ConfigReader.gguf(source)
        sizes = _gguf_sizes(read)
        rope = _gguf_rope(read, sizes["head_dim"])
        context = sizes["max_position_embeddings"]
        plain_4k = context == _PHI3_4K[0] and rope.type == "default"
        window = read.count(".attention.sliding_window", default=_PHI3_4K[1] if plain_4k else 0)
        return cls(
            **sizes,
            norm_eps=read.number(".attention.layer_norm_rms_epsilon"),
            rope=rope,
            sliding_window=_window(window, context),
        )


class PhiMoEConfig(PhiConfig):
    """Phi-3.5-MoE: `norm_eps` is rms_norm_eps, though the norms are layer norms; `intermediate_size` of one expert."""

    num_local_experts: int
    routing: Routing
    attention_bias: bool
    lm_head_bias: bool
    sliding_window: int | None

    @classmethod
    def from_hf(cls, source: ModelSource) -> PhiMoEConfig:
        """From config.json. Raises ConfigError for a missing or impossible value and for other than 2 experts a token,
        which is all that sparsemixer is written down for.
        """
        read = ConfigReader.hf(source)
        read.require("hidden_act", "silu", default="silu")
        sizes = _hf_sizes(read)
        context = read.size("max_position_embeddings", default=131072)
        experts = read.size("num_local_experts", default=16)
        jitter = read.number("router_jitter_noise", default=0.01)
        return cls(
            **sizes,
            max_position_embeddings=context,
            norm_eps=read.number("rms_norm_eps", default=1e-5),
            rope=RopeParameters.from_hf(source, dim=sizes["head_dim"], default_theta=1e6),
            sliding_window=_window(read.count("sliding_window", default=0), context),
            num_local_experts=experts,
            routing=Routing(_experts_per_token(read, "num_experts_per_tok", experts), "sparsemixer", jitter=jitter),
            attention_bias=read.flag("attention_bias", default=False),
            lm_head_bias=read.flag("lm_head_bias", default=False),
        )

    @classmethod
    def from_gguf(cls, source: ModelSource) -> PhiMoEConfig:
        """From GGUF metadata; biases are known by which tensors there are. Raises ConfigError as `from_hf`."""
        read = ConfigReader.gguf(source)
        sizes = _gguf_sizes(read)
        experts = read.size(".expert_count")
        return cls(
            **sizes,
            norm_eps=read.number(".attention.layer_norm_rms_epsilon"),
            rope=_gguf_rope(read, sizes["head_dim"]),
            sliding_window=_window(
                read.count(".attention.sliding_window", default=0), sizes["max_position_embeddings"]
            ),
            num_local_experts=experts,
            # GGUF has no key for the jitter; every published model has Routing's 0.01.
            routing=Routing(_experts_per_token(read, ".expert_used_count", experts), "sparsemixer"),
            attention_bias=read.has("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),
            lm_head_bias=read.has("output.bias"),
        )


def _hf_sizes(read: ConfigReader) -> dict[str, Any]:
    heads, kv_heads = read.heads("num_attention_heads", "num_key_value_heads")
    hidden_size = read.size("hidden_size")
    return {
        "vocab_size": read.size("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": read.size("intermediate_size"),
        "num_hidden_layers": read.layers("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": read.size("head_dim", default=hidden_size // heads),
        "tie_word_embeddings": read.flag("tie_word_embeddings", default=False),
        "eos_token_ids": read.ids("eos_token_id"),
    }


def _gguf_sizes(read: ConfigReader) -> dict[str, Any]:
    heads, kv_heads = read.heads(".attention.head_count", ".attention.head_count_kv")
    hidden_size = read.size(".embedding_length")
    return {
        "vocab_size": read.vocab_size(),
        "hidden_size": hidden_size,
        "intermediate_size": read.size(".feed_forward_length"),
        "num_hidden_layers": read.layers(".block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": read.size(".attention.key_length", default=hidden_size // heads),
        "max_position_embeddings": read.size(".context_length"),
        "tie_word_embeddings": not read.has("output.weight"),
        "eos_token_ids": read.ids("tokenizer.ggml.eos_token_id"),
    }


def _rotated(read: ConfigReader, head_dim: int, default: float) -> int:
    """Leading dimensions of a head that are rotated, by `partial_rotary_factor` of the root or of the rope's object."""
    rope = read.get("rope_parameters", read.get("rope_scaling", None))
    inside = rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None
    share = read.number("partial_rotary_factor", default) if inside is None else inside
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ConfigError(
            f"{read.where}: partial_rotary_factor is {share!r}", remedy="it must be above 0 and at most 1"
        )
    return _even(read, int(head_dim * share), f"partial_rotary_factor {share} of head_dim {head_dim}")


def _gguf_rope(read: ConfigReader, head_dim: int) -> RopeParameters:
    dim = read.size(".rope.dimension_count", default=head_dim)
    if dim > head_dim:
        raise ConfigError(
            f"{read.where}: rope.dimension_count is {dim}, more than the {head_dim} of a head",
            remedy="the file does not belong to its metadata",
        )
    return RopeParameters.from_gguf(read.source, dim=_even(read, dim, f"rope.dimension_count {dim}"), interleaved=False)


def _even(read: ConfigReader, dim: int, what: str) -> int:
    if dim < 2 or dim % 2:
        raise ConfigError(f"{read.where}: {what} gives {dim} rotated dimensions", remedy="they must be pairs")
    return dim


def _window(window: int, context: int) -> int | None:
    """A window as long as the context hides nothing (Phi-3-128k: 262144), and none is written as null or 0."""
    return window if 0 < window < context else None


def _experts_per_token(read: ConfigReader, key: str, experts: int) -> int:
    used: int = read.require(key, 2, default=2)
    if experts < used:
        raise ConfigError(
            f"{read.where}: there are {experts} experts for {used} a token",
            remedy="the file does not belong to its configuration",
        )
    return used
