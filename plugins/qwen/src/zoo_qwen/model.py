"""Qwen2, Qwen2-MoE, Qwen3 and Qwen3-MoE, top to bottom.

Dims: T packed tokens, N heads, K kv heads, H head dim, D hidden size, V vocabulary, L rows of logits.
"""

from __future__ import annotations

from torch import Tensor, nn

from zoo.batch import Batch
from zoo.cache import CacheEntry, CacheSpec, FullAttention, KVCache, SlidingAttention
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
    gate,
    glu,
    project,
)
from zoo_qwen.config import QwenConfig


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; Qwen2 has biases on queries, keys and values."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        q_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = Linear(config.hidden_size, q_size, config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, kv_size, config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, kv_size, config.qkv_bias)
        self.o_proj = Linear(q_size, config.hidden_size, config.o_bias)

    def heads(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T, D] -> queries [T, N, H], keys [T, K, H], values [T, K, H], before rotation."""
        q, k, v = project(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))
        return q, k, v

    def forward(self, hidden_states: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry) -> Tensor:
        """[T, D] -> [T, D]."""
        q, k, v = self.heads(hidden_states)
        return self.o_proj(attend(q, k, v, rotary, batch, kv, scale=self.scale))


class NormedAttention(Attention):
    """As Attention, with queries and keys normalised within each head, by one weight for all heads (Qwen3)."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__(config)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def heads(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T, D] -> queries [T, N, H], keys [T, K, H], values [T, K, H], before rotation."""
        q, k, v = super().heads(hidden_states)
        return self.q_norm(q), self.k_norm(k), v


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.down_proj(glu(hidden_states, self.gate_proj, self.up_proj, act="silu"))


class MoE(nn.Module):
    """Routed experts (Qwen3-MoE). `gate` is the router, as the checkpoints call it."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.gate = Router(config.hidden_size, config.num_experts, config.routing)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.experts(hidden_states, *self.gate(hidden_states))


class SharedMoE(MoE):
    """Routed experts beside one that sees every token, as far as a gate of its own lets it through (Qwen2-MoE)."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__(config)
        self.shared_expert = MLP(config.hidden_size, config.shared_expert_intermediate_size)
        self.shared_expert_gate = Linear(config.hidden_size, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        shared = gate(self.shared_expert(hidden_states), by=self.shared_expert_gate(hidden_states))
        return self.experts(hidden_states, *self.gate(hidden_states), add=shared)


class DecoderLayer(nn.Module):
    """Attention and MLP or experts, each behind a norm. `delta` is what the previous block adds to the residual."""

    def __init__(self, config: QwenConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = NormedAttention(config) if config.qk_norm else Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module
        if not config.moe_layers[index]:
            self.mlp = MLP(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = SharedMoE(config) if config.shared_expert_intermediate_size else MoE(config)

    def forward(
        self, delta: Tensor | None, residual: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry
    ) -> tuple[Tensor, Tensor]:
        """(delta, residual), each [T, D], before -> after this layer."""
        hidden_states, residual = self.input_layernorm(residual, add=delta)
        delta = self.self_attn(hidden_states, rotary, batch, kv)
        hidden_states, residual = self.post_attention_layernorm(residual, add=delta)
        return self.mlp(hidden_states), residual


class QwenModel(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config.rope)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D] after the final norm."""
        residual = self.embed_tokens(batch.input_ids) if batch.input_embeds is None else batch.input_embeds
        rotary = self.rotary_emb(batch.positions)
        delta = None
        for index, layer in enumerate(self.layers):
            delta, residual = layer(delta, residual, rotary, batch, cache[index])
        return self.norm(residual, add=delta)[0]


class QwenForCausalLM(nn.Module):
    """The decoder with its head; the head is the embedding's table where the configuration ties them."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.config = config
        self.model = QwenModel(config)
        tied_to = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = LMHead(config.hidden_size, config.vocab_size, tied_to=tied_to)

    def hidden(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D]."""
        return self.model(batch, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [L, V] of hidden states [L, D]."""
        return self.lm_head(hidden)

    def cache_spec(self) -> list[CacheSpec]:
        """A layer keeps all keys and values, or those of its window."""
        kv_heads, head_dim = self.config.num_key_value_heads, self.config.head_dim
        return [
            FullAttention(kv_heads, head_dim) if window is None else SlidingAttention(kv_heads, head_dim, window)
            for window in self.config.windows
        ]
