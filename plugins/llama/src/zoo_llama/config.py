"""The configuration of a Llama, from config.json or from GGUF metadata."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from zoo.errors import ConfigError
from zoo.nn import RopeParameters
from zoo.plugin import ConfigReader, ModelSource


class LlamaConfig(BaseModel):
    """Sizes and choices, under their config.json names."""

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
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    rope: RopeParameters
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_hf(cls, source: ModelSource) -> LlamaConfig:
        """From config.json. Raises ConfigError for a missing or impossible value and for an unknown activation."""
        read = ConfigReader.hf(source)
        read.require("hidden_act", "silu", default="silu")
        heads, kv_heads = read.heads("num_attention_heads", "num_key_value_heads")
        hidden_size = read.size("hidden_size")
        head_dim = read.size("head_dim", default=hidden_size // heads)
        bias = read.flag("attention_bias", default=False)
        return cls(
            vocab_size=read.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=read.size("intermediate_size"),
            num_hidden_layers=read.layers("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=read.size("max_position_embeddings", default=2048),
            rms_norm_eps=read.number("rms_norm_eps", default=1e-6),
            tie_word_embeddings=read.flag("tie_word_embeddings", default=False),
            qkv_bias=bias,
            o_bias=bias,
            mlp_bias=read.flag("mlp_bias", default=False),
            rope=RopeParameters.from_hf(source, dim=head_dim),
            eos_token_ids=read.ids("eos_token_id"),
        )

    @classmethod
    def from_gguf(cls, source: ModelSource) -> LlamaConfig:
        """From GGUF metadata; biases and a tied head are known by which tensors there are.

        Raises ConfigError for a missing or impossible value, and where only a part of each head is rotated.
        """
        read = ConfigReader.gguf(source)
        heads, kv_heads = read.heads(".attention.head_count", ".attention.head_count_kv")
        hidden_size = read.size(".embedding_length")
        head_dim = read.size(".attention.key_length", default=hidden_size // heads)
        if read.size(".rope.dimension_count", default=head_dim) != head_dim:
            raise ConfigError(
                f"{source.path}: llama.rope.dimension_count is not the head dimension {head_dim}",
                remedy="Llama rotates whole heads; the file may belong to another architecture",
            )
        return cls(
            vocab_size=read.vocab_size(),
            hidden_size=hidden_size,
            intermediate_size=read.size(".feed_forward_length"),
            num_hidden_layers=read.layers(".block_count"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=read.size(".context_length", default=2048),
            rms_norm_eps=read.number(".attention.layer_norm_rms_epsilon"),
            tie_word_embeddings="output.weight" not in source.tensors,
            qkv_bias=read.has("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),
            o_bias=read.has("blk.0.attn_output.bias"),
            mlp_bias=read.has("blk.0.ffn_gate.bias"),
            # The converter reorders the rows of q and k, so pairs lie side by side in every GGUF of this architecture.
            rope=RopeParameters.from_gguf(source, dim=head_dim, interleaved=True),
            eos_token_ids=read.ids("tokenizer.ggml.eos_token_id"),
        )
