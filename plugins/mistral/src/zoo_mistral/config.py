"""The configuration of a Mistral or Mixtral, from config.json, from Mistral's params.json or from GGUF metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from zoo.errors import ConfigError
from zoo.nn import RopeParameters
from zoo.plugin import ConfigReader, ModelSource

_WRAPPER = "Mistral3ForConditionalGeneration"
# transformers' default, for config.json files that do not mention a window; null says that there is none.
_DEFAULT_WINDOW = {"mistral": 4096, "ministral": 4096}
_LAYER_TYPES = {"full_attention": False, "sliding_attention": True}


class MistralConfig(BaseModel):
    """Sizes and choices, under their config.json names.

    `windows`: the sliding window of each layer, in keys, or None. `llama_4_scaling_beta`, `llama_4_scaling_length`: how
    queries grow with their position, see `zoo.kernels.position_scale`; None: they do not. `num_local_experts` 0: no
    experts.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    windows: tuple[int | None, ...]
    rope: RopeParameters
    llama_4_scaling_beta: float | None
    llama_4_scaling_length: int
    num_local_experts: int
    num_experts_per_tok: int
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_hf(cls, source: ModelSource) -> MistralConfig:
        """From config.json, or from params.json where only that is there.

        Raises ConfigError for a missing or impossible value, an unknown activation and an unknown type of layer.
        """
        if source.config_name == "params.json":
            return cls.from_params(source)
        read = ConfigReader.hf(source)
        read.require("hidden_act", "silu", default="silu")
        heads, kv_heads = read.heads("num_attention_heads", "num_key_value_heads")
        hidden_size = read.size("hidden_size")
        head_dim = read.size("head_dim", default=hidden_size // heads)
        layers = read.layers("num_hidden_layers")
        mixtral = "MixtralForCausalLM" in source.architectures
        experts = read.size("num_local_experts", default=8) if mixtral else 0
        rope = RopeParameters.from_hf(
            source,
            dim=head_dim,
            # Consolidated weights may lie beside a config.json; their rows of q and k are in pairs.
            interleaved=read.has("tok_embeddings.weight"),
            default_theta=1e6 if mixtral else 1e4,
        )
        scaling = "rope_parameters" if source.config.get("rope_parameters") else "rope_scaling"
        beta = read.get(f"{scaling}.llama_4_scaling_beta", None)
        return cls(
            vocab_size=read.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=read.size("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=read.size("max_position_embeddings", default=131072),
            rms_norm_eps=read.number("rms_norm_eps", default=1e-5 if mixtral else 1e-6),
            tie_word_embeddings=_hf_tied(read),
            windows=_hf_windows(read, layers),
            rope=rope,
            llama_4_scaling_beta=None if not beta else read.number(f"{scaling}.llama_4_scaling_beta"),
            llama_4_scaling_length=read.size(f"{scaling}.original_max_position_embeddings") if beta else 0,
            num_local_experts=experts,
            num_experts_per_tok=_active(read, "num_experts_per_tok", experts, default=2),
            eos_token_ids=read.ids("eos_token_id"),
        )

    @classmethod
    def from_params(cls, source: ModelSource) -> MistralConfig:
        """From params.json, as mistral-inference reads it. Raises ConfigError for a missing or impossible value."""
        read = ConfigReader.hf(source)
        read.require("model_type", "transformer", default="transformer")
        read.require("activation", "silu", default="silu")
        heads, kv_heads = read.heads("n_heads", "n_kv_heads")
        head_dim = read.size("head_dim", default=read.size("dim") // heads)
        layers = read.layers("n_layers")
        windows = _params_windows(read, layers)
        experts = read.size("moe.num_experts") if source.config.get("moe") else 0
        beta = read.get("llama_4_scaling.beta", None)
        return cls(
            vocab_size=read.size("vocab_size"),
            hidden_size=read.size("dim"),
            intermediate_size=read.size("hidden_dim"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=read.size(
                "max_position_embeddings", default=read.size("max_seq_len", default=131072)
            ),
            rms_norm_eps=read.number("norm_eps"),
            tie_word_embeddings=read.flag("tied_embeddings", default=False),
            windows=windows,
            rope=_params_rope(read, head_dim, sliding=any(windows)),
            llama_4_scaling_beta=None if not beta else read.number("llama_4_scaling.beta"),
            llama_4_scaling_length=read.size("llama_4_scaling.original_max_position_embeddings") if beta else 0,
            num_local_experts=experts,
            num_experts_per_tok=_active(read, "moe.num_experts_per_tok", experts),
            eos_token_ids=(),  # the tokenizer says it
        )

    @classmethod
    def from_gguf(cls, source: ModelSource) -> MistralConfig:
        """From GGUF metadata; a tied head is known by the absence of its tensor.

        Raises ConfigError for a missing or impossible value, and where only a part of each head is rotated.
        """
        read = ConfigReader.gguf(source)
        heads, kv_heads = read.heads(".attention.head_count", ".attention.head_count_kv")
        hidden_size = read.size(".embedding_length")
        head_dim = read.size(".attention.key_length", default=hidden_size // heads)
        read.require(".rope.dimension_count", head_dim, default=head_dim)
        layers = read.layers(".block_count")
        experts = read.count(".expert_count", default=0)
        # The converter reorders the rows of q and k, so pairs lie side by side, as in the consolidated files.
        rope = RopeParameters.from_gguf(source, dim=head_dim, interleaved=True)
        beta = read.get(".attention.temperature_scale", None)
        length = rope.original_max_position_embeddings or None
        return cls(
            vocab_size=read.vocab_size(),
            hidden_size=hidden_size,
            intermediate_size=read.size(".feed_forward_length"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=read.size(".context_length", default=32768),
            rms_norm_eps=read.number(".attention.layer_norm_rms_epsilon"),
            tie_word_embeddings="output.weight" not in source.tensors,
            windows=_gguf_windows(read, layers),
            rope=rope,
            llama_4_scaling_beta=None if not beta else read.number(".attention.temperature_scale"),
            llama_4_scaling_length=read.size(".attention.temperature_length", default=length) if beta else 0,
            num_local_experts=experts,
            num_experts_per_tok=_active(read, ".expert_used_count", experts),
            eos_token_ids=read.ids("tokenizer.ggml.eos_token_id"),
        )


def _active(read: ConfigReader, key: str, experts: int, default: int | None = None) -> int:
    """How many experts see a token."""
    if not experts:
        return 0
    value = read.size(key) if default is None else read.size(key, default=default)
    if value > experts:
        raise ConfigError(f"{read.where}: {key} is {value} of {experts} experts", remedy="it must be at most that many")
    return value


def _hf_tied(read: ConfigReader) -> bool:
    """Whether the head is the embedding. Wrappers say it at two levels or not at all, so there the file decides too."""
    if _WRAPPER not in read.source.architectures:
        return read.flag("tie_word_embeddings", default=False)
    has_head = read.has("lm_head.weight", "language_model.lm_head.weight", "output.weight")
    return read.flag("tie_word_embeddings", default=True) and not has_head


def _hf_windows(read: ConfigReader, layers: int) -> tuple[int | None, ...]:
    config = read.source.config
    known = "sliding_window" in config
    window = config["sliding_window"] if known else _DEFAULT_WINDOW.get(config.get("model_type", "mistral"))
    types = read.get("layer_types", None)
    if window is not None and known:
        window = read.size("sliding_window")
    if types is None:
        return (window,) * layers
    if not isinstance(types, list) or len(types) != layers or any(kind not in _LAYER_TYPES for kind in types):
        raise ConfigError(
            f"{read.where}: layer_types is {str(types)[:80]}",
            remedy=f"it must name {' or '.join(_LAYER_TYPES)} for each of the {layers} layers",
        )
    sliding = tuple(_LAYER_TYPES[kind] for kind in types)
    if any(sliding) and window is None:
        raise ConfigError(
            f"{read.where}: layer_types has sliding_attention, but sliding_window is null", remedy="say the window"
        )
    return tuple(window if slides else None for slides in sliding)


def _params_windows(read: ConfigReader, layers: int) -> tuple[int | None, ...]:
    """One window for all layers, or a pattern that repeats; `_sliding_window` hides it from programs that know none."""
    key = "sliding_window" if read.get("sliding_window", None) is not None else "_sliding_window"
    value = read.get(key, None)
    pattern: Sequence[Any] = value if isinstance(value, list) else [value]
    if not pattern or layers % len(pattern) or any(not _is_window(window) for window in pattern):
        raise ConfigError(
            f"{read.where}: {key} is {str(value)[:80]}",
            remedy=f"it must be a number of keys, null, or a list of them that repeats over the {layers} layers",
        )
    return tuple(pattern[index % len(pattern)] for index in range(layers))


def _is_window(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _gguf_windows(read: ConfigReader, layers: int) -> tuple[int | None, ...]:
    window = read.count(".attention.sliding_window", default=0) or None
    pattern = read.get(".attention.sliding_window_pattern", None)
    if window is None or pattern is None:
        return (window,) * layers
    # A bool per layer: does it slide? llama.cpp's other form, a number, has the last layer of each group not slide.
    slides = [(index + 1) % pattern != 0 for index in range(layers)] if _is_window(pattern) else list(pattern)
    if len(slides) != layers:
        raise ConfigError(
            f"{read.where}: attention.sliding_window_pattern has {len(slides)} entries",
            remedy=f"it must have one for each of the {layers} layers",
        )
    return tuple(window if sliding else None for sliding in slides)


def _params_rope(read: ConfigReader, head_dim: int, *, sliding: bool) -> RopeParameters:
    """Weights in this layout rotate neighbours. The default base is mistral-inference's: it follows the window."""
    theta = read.number("rope_theta", default=1e4 if sliding else 1e6)
    if not read.source.config.get("yarn"):
        return RopeParameters(dim=head_dim, theta=theta, interleaved=True)
    return RopeParameters(
        dim=head_dim,
        theta=theta,
        interleaved=True,
        type="yarn",
        factor=read.number("yarn.factor"),
        original_max_position_embeddings=read.size("yarn.original_max_position_embeddings"),
        beta_fast=read.number("yarn.beta", default=32.0),
        beta_slow=read.number("yarn.alpha", default=1.0),
        attention_factor=None if read.flag("yarn.apply_scale", default=True) else 1.0,
    )
