"""Phi-3.5-MoE, top to bottom: Phi-3's shape with layer norms, biases and two experts per token.

Experts are chosen and weighted by sparsemixer, which the model was trained with and transformers runs; llama.cpp takes
a softmax over the two best instead, and root-mean-square norms.

Dims: T packed tokens, N heads, K kv heads, H head dim, D hidden size, V vocabulary, L rows of logits.
"""

from __future__ import annotations

from torch import Tensor, nn

from zoo.batch import Batch
from zoo.cache import CacheEntry, CacheSpec, FullAttention, KVCache, SlidingAttention
from zoo.nn import Embedding, Experts, LayerNorm, Linear, LMHead, Rotary, RotaryEmbedding, Router, attend, project
from zoo_phi.config import PhiMoEConfig


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: PhiMoEConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        q_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = Linear(config.hidden_size, q_size, config.attention_bias)
        self.k_proj = Linear(config.hidden_size, kv_size, config.attention_bias)
        self.v_proj = Linear(config.hidden_size, kv_size, config.attention_bias)
        self.o_proj = Linear(q_size, config.hidden_size, config.attention_bias)

    def forward(self, hidden_states: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry) -> Tensor:
        """[T, D] -> [T, D]."""
        q, k, v = project(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))  # [T, N or K, H]
        return self.o_proj(attend(q, k, v, rotary, batch, kv, scale=self.scale))


class MoE(nn.Module):
    """Two experts per token."""

    def __init__(self, config: PhiMoEConfig) -> None:
        super().__init__()
        self.router = Router(config.hidden_size, config.num_local_experts, config.routing)
        self.experts = Experts(config.num_local_experts, config.hidden_size, config.intermediate_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.experts(hidden_states, *self.router(hidden_states))


class DecoderLayer(nn.Module):
    """Attention and experts, each behind a norm. `delta` is what the previous block adds to the residual."""

    def __init__(self, config: PhiMoEConfig) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = MoE(config)

    def forward(
        self, delta: Tensor | None, residual: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry
    ) -> tuple[Tensor, Tensor]:
        """(delta, residual), each [T, D], before -> after this layer."""
        hidden_states, residual = self.input_layernorm(residual, add=delta)
        delta = self.self_attn(hidden_states, rotary, batch, kv)
        hidden_states, residual = self.post_attention_layernorm(residual, add=delta)
        return self.mlp(hidden_states), residual


class PhiMoEModel(nn.Module):
    """Embedding, layers, final norm. LongRoPE's factors are chosen as in Phi-3."""

    def __init__(self, config: PhiMoEConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config.rope)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D] after the final norm."""
        residual = self.embed_tokens(batch.input_ids) if batch.input_embeds is None else batch.input_embeds
        rotary = self.rotary_emb(batch.positions, cache.max_model_len)
        delta = None
        for index, layer in enumerate(self.layers):
            delta, residual = layer(delta, residual, rotary, batch, cache[index])
        return self.norm(residual, add=delta)[0]


class PhiMoEForCausalLM(nn.Module):
    """The decoder with its head."""

    def __init__(self, config: PhiMoEConfig) -> None:
        super().__init__()
        self.config = config
        self.model = PhiMoEModel(config)
        tied_to = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = LMHead(config.hidden_size, config.vocab_size, tied_to=tied_to, bias=config.lm_head_bias)

    def hidden(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D]."""
        return self.model(batch, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [L, V] of hidden states [L, D]."""
        return self.lm_head(hidden)

    def cache_spec(self) -> list[CacheSpec]:
        """Every layer keeps the window, or all keys and values where there is none."""
        kv_heads, head_dim, window = (
            self.config.num_key_value_heads,
            self.config.head_dim,
            self.config.sliding_window,
        )
        spec = FullAttention(kv_heads, head_dim) if window is None else SlidingAttention(kv_heads, head_dim, window)
        return [spec] * self.config.num_hidden_layers
