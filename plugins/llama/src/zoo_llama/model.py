"""Llama, top to bottom.

Dims: T packed tokens, N heads, K kv heads, H head dim, D hidden size, V vocabulary, L rows of logits.
"""

from __future__ import annotations

from torch import Tensor, nn

from zoo.batch import Batch
from zoo.cache import CacheEntry, CacheSpec, FullAttention, KVCache
from zoo.nn import Embedding, Linear, LMHead, RMSNorm, Rotary, RotaryEmbedding, attend, glu, project
from zoo_llama.config import LlamaConfig


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        q_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = Linear(config.hidden_size, q_size, config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, kv_size, config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, kv_size, config.qkv_bias)
        self.o_proj = Linear(q_size, config.hidden_size, config.o_bias)

    def forward(self, hidden_states: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry) -> Tensor:
        """[T, D] -> [T, D]."""
        q, k, v = project(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))  # [T, N or K, H]
        return self.o_proj(attend(q, k, v, rotary, batch, kv, scale=self.scale))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.down_proj(glu(hidden_states, self.gate_proj, self.up_proj, act="silu"))


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm. `delta` is what the previous block adds to the residual."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, delta: Tensor | None, residual: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry
    ) -> tuple[Tensor, Tensor]:
        """(delta, residual), each [T, D], before -> after this layer."""
        hidden_states, residual = self.input_layernorm(residual, add=delta)
        delta = self.self_attn(hidden_states, rotary, batch, kv)
        hidden_states, residual = self.post_attention_layernorm(residual, add=delta)
        return self.mlp(hidden_states), residual


class LlamaModel(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config.rope)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D] after the final norm."""
        residual = self.embed_tokens(batch.input_ids) if batch.input_embeds is None else batch.input_embeds
        rotary = self.rotary_emb(batch.positions)
        delta = None
        for index, layer in enumerate(self.layers):
            delta, residual = layer(delta, residual, rotary, batch, cache[index])
        return self.norm(residual, add=delta)[0]


class LlamaForCausalLM(nn.Module):
    """The decoder with its head; the head is the embedding's table where the configuration ties them."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        tied_to = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = LMHead(config.hidden_size, config.vocab_size, tied_to=tied_to)

    def hidden(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D]."""
        return self.model(batch, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [L, V] of hidden states [L, D]."""
        return self.lm_head(hidden)

    def cache_spec(self) -> list[CacheSpec]:
        """Every layer keeps all keys and values."""
        return [FullAttention(self.config.num_key_value_heads, self.config.head_dim)] * self.config.num_hidden_layers
