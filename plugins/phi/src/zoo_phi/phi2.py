"""Phi-1, Phi-1.5 and Phi-2, top to bottom: attention and MLP side by side behind one layer norm, biases everywhere.

Dims: T packed tokens, N heads, K kv heads, H head dim, D hidden size, V vocabulary, L rows of logits.
"""

from __future__ import annotations

from torch import Tensor, nn

from zoo.batch import Batch
from zoo.cache import CacheEntry, CacheSpec, FullAttention, KVCache
from zoo.nn import Embedding, LayerNorm, Linear, LMHead, Rotary, RotaryEmbedding, activate, add, attend, project
from zoo_phi.config import Phi2Config


class Attention(nn.Module):
    """Attention with rotary positions on the leading part of each head."""

    def __init__(self, config: Phi2Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        q_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = Linear(config.hidden_size, q_size, bias=True)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=True)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=True)
        self.dense = Linear(q_size, config.hidden_size, bias=True)

    def forward(self, hidden_states: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry) -> Tensor:
        """[T, D] -> [T, D]."""
        q, k, v = project(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))  # [T, N or K, H]
        return self.dense(attend(q, k, v, rotary, batch, kv, scale=self.scale))


class MLP(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, config: Phi2Config) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.fc2(activate(self.fc1(hidden_states), act="gelu_tanh"))


class DecoderLayer(nn.Module):
    """Attention and MLP read the same normed input. `delta` is what the previous layer adds to the residual."""

    def __init__(self, config: Phi2Config) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.mlp = MLP(config)

    def forward(
        self, delta: Tensor | None, residual: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry
    ) -> tuple[Tensor, Tensor]:
        """(delta, residual), each [T, D], before -> after this layer."""
        hidden_states, residual = self.input_layernorm(residual, add=delta)
        return add(self.self_attn(hidden_states, rotary, batch, kv), self.mlp(hidden_states)), residual


class Phi2Model(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: Phi2Config) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config.rope)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D] after the final norm."""
        residual = self.embed_tokens(batch.input_ids) if batch.input_embeds is None else batch.input_embeds
        rotary = self.rotary_emb(batch.positions)
        delta = None
        for index, layer in enumerate(self.layers):
            delta, residual = layer(delta, residual, rotary, batch, cache[index])
        return self.final_layernorm(residual, add=delta)[0]


class Phi2ForCausalLM(nn.Module):
    """The decoder with its head, which has a bias."""

    def __init__(self, config: Phi2Config) -> None:
        super().__init__()
        self.config = config
        self.model = Phi2Model(config)
        tied_to = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = LMHead(config.hidden_size, config.vocab_size, tied_to=tied_to, bias=True)

    def hidden(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D]."""
        return self.model(batch, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [L, V] of hidden states [L, D]."""
        return self.lm_head(hidden)

    def cache_spec(self) -> list[CacheSpec]:
        """Every layer keeps all keys and values."""
        return [FullAttention(self.config.num_key_value_heads, self.config.head_dim)] * self.config.num_hidden_layers
