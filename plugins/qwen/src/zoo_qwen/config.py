"""The configuration of a Qwen, from config.json or from GGUF metadata.

Four architectures share it: Qwen2, Qwen2-MoE, Qwen3 and Qwen3-MoE. What is normalised and routed follows from the name.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from zoo.errors import ConfigError
from zoo.kernels import Routing
from zoo.nn import RopeParameters
from zoo.plugin import ConfigReader, ModelSource
from zoo_qwen.plugin import EXPERTS, QK_NORM

_LAYER_TYPES = ("full_attention", "sliding_attention")


class QwenConfig(BaseModel):
    """Sizes and choices, under their config.json names.

    `windows`: sliding window of each layer, None for full attention. `qk_norm`: queries and keys are normalised.
    `moe_layers`: which layers have experts; `shared_expert_intermediate_size` is 0 where no expert sees every token.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool
    num_experts: int
    moe_layers: tuple[bool, ...]
    routing: Routing
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    rope: RopeParameters
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_hf(cls, source: ModelSource) -> QwenConfig:
        """From config.json. Raises ConfigError for a missing or impossible value and for an unknown activation."""
        read = ConfigReader.hf(source)
        read.require("hidden_act", "silu", default="silu")
        name = _name(source)
        heads, kv_heads = read.heads("num_attention_heads", "num_key_value_heads")
        hidden_size, layers = read.size("hidden_size"), read.layers("num_hidden_layers")
        # Qwen3's own default, whatever the number of heads.
        head_dim = read.size("head_dim", default=128 if name == "Qwen3ForCausalLM" else hidden_size // heads)
        moe_layers = _hf_moe_layers(read, name, layers)
        experts = _hf_experts(read) if any(moe_layers) else 0
        shared = any(moe_layers) and name == "Qwen2MoeForCausalLM"
        rope = RopeParameters.from_hf(source, dim=head_dim)
        qkv_bias, o_bias = _hf_biases(read, name)
        return cls(
            vocab_size=read.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=0 if all(moe_layers) else read.size("intermediate_size"),
            moe_intermediate_size=read.size("moe_intermediate_size") if experts else 0,
            shared_expert_intermediate_size=read.size("shared_expert_intermediate_size") if shared else 0,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            windows=_hf_windows(read, name, layers),
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            qk_norm=name in QK_NORM,
            num_experts=experts,
            moe_layers=moe_layers,
            routing=_routing(
                read,
                experts,
                top_k=read.size("num_experts_per_tok") if experts else 1,
                normalize=read.flag("norm_topk_prob", default=False),
            ),
            max_position_embeddings=_context(read.size("max_position_embeddings", default=32768), rope),
            rms_norm_eps=read.number("rms_norm_eps", default=1e-6),
            tie_word_embeddings=read.flag("tie_word_embeddings", default=False),
            rope=rope,
            eos_token_ids=read.ids("eos_token_id"),
        )

    @classmethod
    def from_gguf(cls, source: ModelSource) -> QwenConfig:
        """From GGUF metadata; biases, a tied head and which layers have experts are known by the tensors.

        No key says whether the weights of chosen experts are normalised: Qwen3-MoE does it and Qwen2-MoE does not.
        Neither is there one for a sliding window, so every layer attends to all. Raises ConfigError for a missing or
        impossible value, and where only a part of each head is rotated.
        """
        read, name = ConfigReader.gguf(source), _name(source)
        heads, kv_heads = read.heads(".attention.head_count", ".attention.head_count_kv")
        hidden_size, layers = read.size(".embedding_length"), read.layers(".block_count")
        head_dim = read.size(".attention.key_length", default=hidden_size // heads)
        if read.size(".rope.dimension_count", default=head_dim) != head_dim:
            raise ConfigError(
                f"{source.path}: {name}.rope.dimension_count is not the head dimension {head_dim}",
                remedy="Qwen rotates whole heads; the file may belong to another architecture",
            )
        moe_layers = _gguf_moe_layers(source, name, layers)
        experts = read.size(".expert_count") if any(moe_layers) else 0
        rope = RopeParameters.from_gguf(source, dim=head_dim, interleaved=False)
        return cls(
            vocab_size=read.vocab_size(),
            hidden_size=hidden_size,
            intermediate_size=0 if all(moe_layers) else read.size(".feed_forward_length"),
            # Early files of Qwen2-MoE have no keys for these two.
            moe_intermediate_size=_columns(source, moe_layers, "ffn_down_exps.weight"),
            shared_expert_intermediate_size=_columns(source, moe_layers, "ffn_down_shexp.weight"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            windows=(None,) * layers,
            qkv_bias=read.has("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),
            o_bias=read.has("blk.0.attn_output.bias"),
            qk_norm=name in QK_NORM,
            num_experts=experts,
            moe_layers=moe_layers,
            routing=_routing(
                read,
                experts,
                top_k=read.size(".expert_used_count") if experts else 1,
                normalize=name == "qwen3moe",
            ),
            max_position_embeddings=_context(read.size(".context_length", default=32768), rope),
            rms_norm_eps=read.number(".attention.layer_norm_rms_epsilon"),
            tie_word_embeddings="output.weight" not in source.tensors,
            rope=rope,
            eos_token_ids=read.ids("tokenizer.ggml.eos_token_id"),
        )


def _name(source: ModelSource) -> str:
    """The name by which the plugin knows the model. A plugin that was forced on another takes it for a Qwen2."""
    known = QK_NORM | EXPERTS
    return next((name for name in source.architectures if name in known), "Qwen2ForCausalLM")


def _context(stated: int, rope: RopeParameters) -> int:
    """Tokens of context. Qwen's instructions add YaRN to a configuration and leave its length as it was."""
    if rope.type != "yarn":
        return stated
    return max(stated, int(rope.factor * rope.original_max_position_embeddings))


def _routing(read: ConfigReader, experts: int, *, top_k: int, normalize: bool) -> Routing:
    if experts and top_k > experts:
        raise ConfigError(f"{read.where}: {top_k} of {experts} experts are used", remedy="the configuration is damaged")
    return Routing(top_k, normalize=normalize)


def _hf_biases(read: ConfigReader, name: str) -> tuple[bool, bool]:
    """Whether q, k and v have biases, and whether the output has one: Qwen3 has a key for all of them."""
    if name in QK_NORM:
        bias = read.flag("attention_bias", default=False)
        return bias, bias
    return name == "Qwen2ForCausalLM" or read.flag("qkv_bias", default=True), False


def _hf_experts(read: ConfigReader) -> int:
    """Experts; transformers writes Qwen3-MoE's under a name of its own."""
    other = read.get("num_local_experts", None)
    return read.count("num_experts") if other is None else read.count("num_experts", default=other)


def _hf_moe_layers(read: ConfigReader, name: str, layers: int) -> tuple[bool, ...]:
    if name not in EXPERTS:
        return (False,) * layers
    step, dense = read.size("decoder_sparse_step", default=1), read.get("mlp_only_layers", ())
    if not isinstance(dense, list | tuple) or not all(type(layer) is int for layer in dense):
        raise ConfigError(f"{read.where}: mlp_only_layers is {dense!r}", remedy="it must be a list of layers")
    if _hf_experts(read) == 0:
        return (False,) * layers
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(layers))


def _hf_windows(read: ConfigReader, name: str, layers: int) -> tuple[int | None, ...]:
    """As transformers chooses: a window counts only where use_sliding_window is true."""
    slides = read.flag("use_sliding_window", default=False)
    types = None if name == "Qwen3MoeForCausalLM" else read.get("layer_types", None)
    if types is None:
        limit = read.count("max_window_layers", default=28)
        sliding = [slides and _slides(name, layer, limit) for layer in range(layers)]
    else:
        if not isinstance(types, list) or len(types) != layers or any(kind not in _LAYER_TYPES for kind in types):
            raise ConfigError(
                f"{read.where}: layer_types is {types!r}",
                remedy=f"it must name {' or '.join(_LAYER_TYPES)} for each of {layers} layers",
            )
        sliding = [kind == "sliding_attention" for kind in types]
        if any(sliding) and not slides:
            raise ConfigError(
                f"{read.where}: layer_types has sliding_attention but use_sliding_window is false",
                remedy="set one of the two with --set",
            )
    window = read.size("sliding_window") if any(sliding) else None
    return tuple(window if slide else None for slide in sliding)


def _slides(name: str, layer: int, limit: int) -> bool:
    """Whether a layer slides in a model with a window: from `max_window_layers` on; in Qwen2-MoE every other layer
    before it; in Qwen3-MoE each.
    """
    if name == "Qwen2MoeForCausalLM":
        return layer < limit and layer % 2 == 0
    return name == "Qwen3MoeForCausalLM" or layer >= limit


def _gguf_moe_layers(source: ModelSource, name: str, layers: int) -> tuple[bool, ...]:
    found = tuple(f"blk.{layer}.ffn_gate_inp.weight" in source.tensors for layer in range(layers))
    if any(found) and name not in EXPERTS:
        raise ConfigError(
            f"{source.path}: {name} has no experts, but blk.{found.index(True)}.ffn_gate_inp.weight is a router",
            remedy="the metadata does not belong to the tensors",
        )
    return found


def _columns(source: ModelSource, layers: tuple[bool, ...], name: str) -> int:
    """Columns of a tensor in the first layer of those marked; 0 where it has none."""
    info = source.tensors.get(f"blk.{layers.index(True)}.{name}") if any(layers) else None
    return info.shape[-1] if info else 0
