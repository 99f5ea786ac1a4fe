"""Gemma 1, 2 and 3, top to bottom.

Dims: T packed tokens, N heads, K kv heads, H head dim, D hidden size, V vocabulary, L rows of logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.batch import Batch
from zoo.cache import CacheEntry, CacheSpec, FullAttention, KVCache, SlidingAttention
from zoo.nn import Embedding, Linear, LMHead, RMSNorm, Rotary, RotaryEmbedding, attend, glu, project
from zoo_gemma.config import GemmaConfig


def norm(config: GemmaConfig, size: int) -> RMSNorm:
    """A norm whose weight is stored as the source stores it: less 1 in safetensors, whole in GGUF."""
    return RMSNorm(size, config.rms_norm_eps, config.norm_offset)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; Gemma 2 caps its scores."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.scale = config.query_pre_attn_scalar**-0.5
        self.softcap = config.attn_logit_softcapping
        q_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = Linear(config.hidden_size, q_size)
        self.k_proj = Linear(config.hidden_size, kv_size)
        self.v_proj = Linear(config.hidden_size, kv_size)
        self.o_proj = Linear(q_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry) -> Tensor:
        """[T, D] -> [T, D]."""
        q, k, v = project(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))  # [T, N or K, H]
        return self.o_proj(attend(q, k, v, rotary, batch, kv, scale=self.scale, softcap=self.softcap))


class NormedAttention(Attention):
    """Gemma 3: queries and keys are normed, with one weight for all heads; nothing is capped."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__(config)
        self.q_norm = norm(config, config.head_dim)
        self.k_norm = norm(config, config.head_dim)

    def forward(self, hidden_states: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry) -> Tensor:
        """[T, D] -> [T, D]."""
        q, k, v = project(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))  # [T, N or K, H]
        return self.o_proj(attend(self.q_norm(q), self.k_norm(k), v, rotary, batch, kv, scale=self.scale))


class MLP(nn.Module):
    """GeGLU."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.down_proj(glu(hidden_states, self.gate_proj, self.up_proj, act="gelu_tanh"))


class DecoderLayer(nn.Module):
    """Gemma 1: attention and MLP, each behind a norm. `delta` is what the previous block adds to the residual."""

    def __init__(self, config: GemmaConfig, self_attn: Attention) -> None:
        super().__init__()
        self.input_layernorm = norm(config, config.hidden_size)
        self.self_attn = self_attn
        self.post_attention_layernorm = norm(config, config.hidden_size)
        self.mlp = MLP(config)

    def forward(
        self, delta: Tensor | None, residual: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry
    ) -> tuple[Tensor, Tensor]:
        """(delta, residual), each [T, D], before -> after this layer."""
        hidden_states, residual = self.input_layernorm(residual, add=delta)
        delta = self.self_attn(hidden_states, rotary, batch, kv)
        hidden_states, residual = self.post_attention_layernorm(residual, add=delta)
        return self.mlp(hidden_states), residual


class SandwichLayer(nn.Module):
    """Gemma 2 and 3: attention and MLP, each between two norms."""

    def __init__(self, config: GemmaConfig, self_attn: Attention) -> None:
        super().__init__()
        self.input_layernorm = norm(config, config.hidden_size)
        self.self_attn = self_attn
        self.post_attention_layernorm = norm(config, config.hidden_size)
        self.pre_feedforward_layernorm = norm(config, config.hidden_size)
        self.mlp = MLP(config)
        self.post_feedforward_layernorm = norm(config, config.hidden_size)

    def forward(
        self, delta: Tensor | None, residual: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry
    ) -> tuple[Tensor, Tensor]:
        """(delta, residual), each [T, D], before -> after this layer."""
        hidden_states, residual = self.input_layernorm(residual, add=delta)
        delta = self.post_attention_layernorm(self.self_attn(hidden_states, rotary, batch, kv))
        hidden_states, residual = self.pre_feedforward_layernorm(residual, add=delta)
        return self.post_feedforward_layernorm(self.mlp(hidden_states)), residual


class GemmaModel(nn.Module):
    """Scaled embedding, layers, final norm."""

    def __init__(self, config: GemmaConfig, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layer_types = config.layer_types
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, scale=config.hidden_size**0.5)
        # One rotation for each kind of layer: Gemma 3's local layers have a theta of their own.
        self.rotary_emb = nn.ModuleDict({kind: RotaryEmbedding(rope) for kind, rope in config.rope.items()})
        self.layers = nn.ModuleList(layers)
        self.norm = norm(config, config.hidden_size)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D] after the final norm."""
        residual = self.embed_tokens(batch.input_ids) if batch.input_embeds is None else batch.input_embeds
        rotary = {kind: rotary_emb(batch.positions) for kind, rotary_emb in self.rotary_emb.items()}
        delta = None
        for index, layer in enumerate(self.layers):
            delta, residual = layer(delta, residual, rotary[self.layer_types[index]], batch, cache[index])
        return self.norm(residual, add=delta)[0]


class GemmaForCausalLM(nn.Module):
    """The decoder with its head, which is the embedding's table, unscaled, where the configuration ties them."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = GemmaModel(config, [self.layer() for _ in config.layer_types])
        tied_to = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = LMHead(
            config.hidden_size, config.vocab_size, tied_to=tied_to, softcap=config.final_logit_softcapping
        )

    def layer(self) -> nn.Module:
        """A layer of this generation."""
        return DecoderLayer(self.config, Attention(self.config))

    def hidden(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D]."""
        return self.model(batch, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [L, V] of hidden states [L, D]."""
        return self.lm_head(hidden)

    def cache_spec(self) -> list[CacheSpec]:
        """Local layers keep the keys and values of their window, global ones all."""
        heads, head_dim, window = (
            self.config.num_key_value_heads, self.config.head_dim, self.config.sliding_window
        )  # fmt: skip
        full = FullAttention(heads, head_dim)
        local = full if window is None else SlidingAttention(heads, head_dim, window)
        return [local if kind == "sliding_attention" else full for kind in self.config.layer_types]


class Gemma2ForCausalLM(GemmaForCausalLM):
    """Gemma 2."""

    def layer(self) -> nn.Module:
        """A layer of this generation."""
        return SandwichLayer(self.config, Attention(self.config))


class Gemma3ForCausalLM(GemmaForCausalLM):
    """The text model of Gemma 3."""

    def layer(self) -> nn.Module:
        """A layer of this generation."""
        return SandwichLayer(self.config, NormedAttention(self.config))
