"""The configuration of a Gemma, from config.json or from GGUF metadata; one class per generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from zoo.errors import ConfigError
from zoo.nn import RopeParameters
from zoo.plugin import ConfigReader, ModelSource

LOCAL, GLOBAL = "sliding_attention", "full_attention"


class GemmaConfig(BaseModel):
    """Sizes and choices, under their config.json names, and those of Gemma 1.

    `layer_types`: for each layer whether it sees its window or everything; `rope`: rotation by kind of layer;
    `norm_offset`: what is added to the weights of norms, 1 for safetensors, 0 for GGUF, whose converter has added it.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    # What transformers assumes where config.json says nothing: published files of Gemma 3 leave much out.
    defaults: ClassVar[Mapping[str, int]] = {
        "vocab_size": 256000,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 8192,
    }

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    norm_offset: float
    tie_word_embeddings: bool
    query_pre_attn_scalar: float
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    sliding_window: int | None = None
    layer_types: tuple[str, ...]
    rope: Mapping[str, RopeParameters]
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_hf(cls, source: ModelSource) -> GemmaConfig:
        """From config.json. Raises ConfigError for a missing or impossible value and for an unknown activation."""
        read = ConfigReader.hf(source)
        # Early files of Gemma 1 say gelu and mean its tanh form, as transformers reads them.
        read.require("hidden_act", "gelu", "gelu_pytorch_tanh", default="gelu")
        read.require("hidden_activation", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
        sizes = cls._hf_sizes(read)
        return cls(
            **sizes,
            query_pre_attn_scalar=sizes["head_dim"],
            layer_types=(GLOBAL,) * sizes["num_hidden_layers"],
            rope={GLOBAL: RopeParameters.from_hf(source, dim=sizes["head_dim"])},
        )

    @classmethod
    def from_gguf(cls, source: ModelSource) -> GemmaConfig:
        """From GGUF metadata. Raises ConfigError for a missing or impossible value."""
        read = ConfigReader.gguf(source)
        sizes = cls._gguf_sizes(read)
        return cls(
            **sizes,
            query_pre_attn_scalar=sizes["head_dim"],
            layer_types=(GLOBAL,) * sizes["num_hidden_layers"],
            rope={GLOBAL: RopeParameters.from_gguf(source, dim=sizes["head_dim"], interleaved=False)},
        )

    @classmethod
    def _hf_sizes(cls, read: ConfigReader) -> dict[str, Any]:
        read.require("attention_bias", False, default=False)
        read.require("use_bidirectional_attention", False, default=False)
        values = {key: read.size(key, default) for key, default in cls.defaults.items()}
        if values["num_attention_heads"] % values["num_key_value_heads"]:
            read.heads("num_attention_heads", "num_key_value_heads")  # says what is wrong
        return values | {
            "hidden_size": read.size("hidden_size"),
            "intermediate_size": read.size("intermediate_size"),
            "num_hidden_layers": read.layers("num_hidden_layers"),
            "head_dim": read.size("head_dim", default=256),
            "rms_norm_eps": read.number("rms_norm_eps", default=1e-6),
            "norm_offset": 1.0,
            "tie_word_embeddings": read.flag("tie_word_embeddings", default=True),
            "eos_token_ids": read.ids("eos_token_id"),
        }

    @classmethod
    def _gguf_sizes(cls, read: ConfigReader) -> dict[str, Any]:
        source = read.source
        heads, kv_heads = read.heads(".attention.head_count", ".attention.head_count_kv")
        head_dim = read.size(".attention.key_length", default=256)
        for key in (".attention.value_length", ".rope.dimension_count"):
            if (other := read.size(key, default=head_dim)) != head_dim:
                raise ConfigError(
                    f"{source.path}: {source.architectures[0]}{key} is {other}, the head dimension {head_dim}",
                    remedy="in a Gemma they are equal; the file may belong to another architecture",
                )
        return {
            "vocab_size": read.vocab_size(),
            "hidden_size": read.size(".embedding_length"),
            "intermediate_size": read.size(".feed_forward_length"),
            "num_hidden_layers": read.layers(".block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": read.size(".context_length", default=cls.defaults["max_position_embeddings"]),
            "rms_norm_eps": read.number(".attention.layer_norm_rms_epsilon"),
            "norm_offset": 0.0,
            "tie_word_embeddings": "output.weight" not in source.tensors,
            "eos_token_ids": read.ids("tokenizer.ggml.eos_token_id"),
        }


class Gemma2Config(GemmaConfig):
    """Gemma 2: capped scores and logits, every second layer local, from the first on."""

    defaults: ClassVar[Mapping[str, int]] = {
        "vocab_size": 256000,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 8192,
    }

    @classmethod
    def from_hf(cls, source: ModelSource) -> Gemma2Config:
        """From config.json. Raises ConfigError for a missing or impossible value and for an unknown activation."""
        read = ConfigReader.hf(source)
        read.require("hidden_activation", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
        sizes = cls._hf_sizes(read)
        rope = RopeParameters.from_hf(source, dim=sizes["head_dim"])
        return cls(
            **sizes,
            query_pre_attn_scalar=read.number("query_pre_attn_scalar", default=256),
            attn_logit_softcapping=_cap(read, "attn_logit_softcapping", 50.0),
            final_logit_softcapping=_cap(read, "final_logit_softcapping", 30.0),
            sliding_window=read.size("sliding_window", default=4096),
            layer_types=_hf_layer_types(read, sizes["num_hidden_layers"], pattern=2),
            rope={LOCAL: rope, GLOBAL: rope},
        )

    @classmethod
    def from_gguf(cls, source: ModelSource) -> Gemma2Config:
        """From GGUF metadata; the first files lack window and caps. Raises ConfigError for an impossible value."""
        read = ConfigReader.gguf(source)
        sizes = cls._gguf_sizes(read)
        rope = RopeParameters.from_gguf(source, dim=sizes["head_dim"], interleaved=False)
        return cls(
            **sizes,
            query_pre_attn_scalar=_gguf_scalar(sizes, wide=46),
            attn_logit_softcapping=read.number(".attn_logit_softcapping", default=50.0),
            final_logit_softcapping=read.number(".final_logit_softcapping", default=30.0),
            sliding_window=read.size(".attention.sliding_window", default=4096),
            layer_types=_gguf_layer_types(read, sizes["num_hidden_layers"], pattern=2),
            rope={LOCAL: rope, GLOBAL: rope},
        )


class Gemma3Config(GemmaConfig):
    """The text model of Gemma 3: five local layers to a global one, each kind with a rotation of its own."""

    defaults: ClassVar[Mapping[str, int]] = {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
    }

    @classmethod
    def from_hf(cls, source: ModelSource) -> Gemma3Config:
        """From config.json, a multimodal model's too. Raises ConfigError for a missing or impossible value."""
        read = ConfigReader.hf(source)
        read.require("hidden_activation", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
        read.require("attn_logit_softcapping", None, default=None)
        sizes = cls._hf_sizes(read)
        return cls(
            **sizes,
            query_pre_attn_scalar=read.number("query_pre_attn_scalar", default=256),
            final_logit_softcapping=_cap(read, "final_logit_softcapping", None),
            sliding_window=read.size("sliding_window", default=4096),
            layer_types=_hf_layer_types(
                read, sizes["num_hidden_layers"], pattern=read.size("sliding_window_pattern", default=6)
            ),
            rope=_hf_ropes(read, sizes["head_dim"]),
        )

    @classmethod
    def from_gguf(cls, source: ModelSource) -> Gemma3Config:
        """From GGUF metadata; most files lack the local theta and the pattern of layers. Raises ConfigError."""
        read = ConfigReader.gguf(source)
        sizes = cls._gguf_sizes(read)
        head_dim = sizes["head_dim"]
        local_theta = read.number(".rope.freq_base_swa", default=10000.0)
        return cls(
            **sizes,
            query_pre_attn_scalar=_gguf_scalar(sizes, wide=62),
            final_logit_softcapping=_cap(read, ".final_logit_softcapping", None),
            sliding_window=read.size(".attention.sliding_window"),
            layer_types=_gguf_layer_types(read, sizes["num_hidden_layers"], pattern=6),
            rope={
                # A scaling of positions is for global layers only.
                LOCAL: RopeParameters(dim=head_dim, theta=local_theta),
                GLOBAL: RopeParameters.from_gguf(source, dim=head_dim, interleaved=False),
            },
        )


def _cap(read: ConfigReader, key: str, default: float | None) -> float | None:
    """A cap of logits. In config.json null means none, and an absent key the default."""
    if read.get(key, None) is None:
        return None if key in read.source.config else default
    return read.number(key)


def _gguf_scalar(sizes: Mapping[str, Any], *, wide: int) -> float:
    """GGUF has no key for query_pre_attn_scalar: it is the head dimension, but in the largest model of a generation,
    known by its number of layers, hidden_size / num_attention_heads (the rule of llama.cpp).
    """
    if sizes["num_hidden_layers"] == wide:
        return float(sizes["hidden_size"] / sizes["num_attention_heads"])
    return float(sizes["head_dim"])


def _pattern(layers: int, pattern: int) -> tuple[str, ...]:
    """Every `pattern`-th layer is global."""
    return tuple(GLOBAL if (i + 1) % pattern == 0 else LOCAL for i in range(layers))


def _hf_layer_types(read: ConfigReader, layers: int, *, pattern: int) -> tuple[str, ...]:
    types = read.get("layer_types", None)
    if types is None:
        return _pattern(layers, pattern)
    if not isinstance(types, list) or len(types) != layers or not set(types) <= {LOCAL, GLOBAL}:
        raise ConfigError(
            f"{read.where}: layer_types is {str(types)[:120]}",
            remedy=f"it must have {layers} entries, each {LOCAL!r} or {GLOBAL!r}",
        )
    return tuple(types)


def _gguf_layer_types(read: ConfigReader, layers: int, *, pattern: int) -> tuple[str, ...]:
    """The key holds the period of global layers, or for each layer whether it is local."""
    key = ".attention.sliding_window_pattern"
    found = read.get(key, pattern)
    if isinstance(found, int | float | str):
        return _pattern(layers, read.size(key, default=pattern))
    flags = list(found)
    if len(flags) != layers or any(flag not in (0, 1) for flag in flags):
        raise ConfigError(
            f"{read.where}: {read.source.architectures[0]}{key} is {str(flags)[:120]}",
            remedy=f"it must be a positive integer or {layers} truth values, one per layer",
        )
    return tuple(LOCAL if flag else GLOBAL for flag in flags)


def _hf_ropes(read: ConfigReader, dim: int) -> dict[str, RopeParameters]:
    """`rope_parameters` has an entry per kind of layer. Before it existed, `rope_theta` and `rope_scaling` were for
    global layers, and `rope_local_base_freq` was the theta of local ones.
    """
    source, thetas = read.source, {LOCAL: 10000.0, GLOBAL: 1e6}
    by_kind = read.get("rope_parameters", None)
    if isinstance(by_kind, Mapping) and (LOCAL in by_kind or GLOBAL in by_kind):
        return {
            kind: RopeParameters.from_hf(source, dim=dim, layer_type=kind, default_theta=theta)
            if by_kind.get(kind) is not None
            else RopeParameters(dim=dim, theta=theta)
            for kind, theta in thetas.items()
        }
    return {
        LOCAL: RopeParameters(dim=dim, theta=read.number("rope_local_base_freq", default=thetas[LOCAL])),
        GLOBAL: RopeParameters.from_hf(source, dim=dim, default_theta=thetas[GLOBAL]),
    }
