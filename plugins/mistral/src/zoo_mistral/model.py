"""Mistral and Mixtral, top to bottom.

Dims: T packed tokens, N heads, K kv heads, H head dim, D hidden size, V vocabulary, L rows of logits.
"""

from __future__ import annotations

from torch import Tensor, nn

from zoo.batch import Batch
from zoo.cache import CacheEntry, CacheSpec, FullAttention, KVCache, SlidingAttention
from zoo.kernels import Routing
from zoo.nn import (
    Embedding,
    Experts,
    Linear,
    LMHead,
    RMSNorm,
    Rotary,
    RotaryEmbedding,
    Router,
    attend,
    glu,
    position_scale,
    project,
)
from zoo_mistral.config import MistralConfig


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; a sliding window, if there is one, is a property of the cache."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        q_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = Linear(config.hidden_size, q_size)
        self.k_proj = Linear(config.hidden_size, kv_size)
        self.v_proj = Linear(config.hidden_size, kv_size)
        self.o_proj = Linear(q_size, config.hidden_size)

    def queries(self, q: Tensor, batch: Batch) -> Tensor:
        """What becomes of the queries [T, N, H] before the rotation."""
        return q

    def forward(self, hidden_states: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry) -> Tensor:
        """[T, D] -> [T, D]."""
        q, k, v = project(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))  # [T, N or K, H]
        return self.o_proj(attend(self.queries(q, batch), k, v, rotary, batch, kv, scale=self.scale))


class TemperedAttention(Attention):
    """As Attention, with queries that grow past the original context (Ministral 3)."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        assert config.llama_4_scaling_beta is not None
        self.beta, self.length = config.llama_4_scaling_beta, config.llama_4_scaling_length

    def queries(self, q: Tensor, batch: Batch) -> Tensor:
        """Scaled by position, which commutes with the rotation."""
        return position_scale(q, batch.positions, beta=self.beta, length=self.length)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.down_proj(glu(hidden_states, self.gate_proj, self.up_proj, act="silu"))


class MoE(nn.Module):
    """Mixtral's experts: the best of a softmax over all of them, weighted anew to a sum of 1."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        routing = Routing(config.num_experts_per_tok, normalize=True)
        self.gate = Router(config.hidden_size, config.num_local_experts, routing)
        self.experts = Experts(config.num_local_experts, config.hidden_size, config.intermediate_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.experts(hidden_states, *self.gate(hidden_states))


class DecoderLayer(nn.Module):
    """Attention and MLP or experts, each behind a norm. `delta` is what the previous block adds to the residual."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config) if config.llama_4_scaling_beta is None else TemperedAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if config.num_local_experts else MLP(config)

    def forward(
        self, delta: Tensor | None, residual: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry
    ) -> tuple[Tensor, Tensor]:
        """(delta, residual), each [T, D], before -> after this layer."""
        hidden_states, residual = self.input_layernorm(residual, add=delta)
        delta = self.self_attn(hidden_states, rotary, batch, kv)
        hidden_states, residual = self.post_attention_layernorm(residual, add=delta)
        return self.mlp(hidden_states), residual


class MistralModel(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: MistralConfig) -> None:
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


class MistralForCausalLM(nn.Module):
    """The decoder with its head; the head is the embedding's table where the configuration ties them."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.config = config
        self.model = MistralModel(config)
        tied_to = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = LMHead(config.hidden_size, config.vocab_size, tied_to=tied_to)

    def hidden(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D]."""
        return self.model(batch, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [L, V] of hidden states [L, D]."""
        return self.lm_head(hidden)

    def cache_spec(self) -> list[CacheSpec]:
        """A layer with a window keeps that many keys and values, the others all."""
        sizes = self.config.num_key_value_heads, self.config.head_dim
        return [
            FullAttention(*sizes) if window is None else SlidingAttention(*sizes, window)
            for window in self.config.windows
        ]
