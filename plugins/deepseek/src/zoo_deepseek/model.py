"""DeepSeek-V2 and V3, top to bottom: latent attention and routed experts.

Dims: T packed tokens, N heads, P and R the unrotated and rotated parts of a key, C the latent rank, D hidden size,
V vocabulary, L rows of logits.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from zoo.batch import Batch
from zoo.cache import CacheEntry, CacheSpec, KVCache, LatentAttention
from zoo.nn import (
    Embedding,
    Experts,
    HeadLinear,
    Linear,
    LMHead,
    RMSNorm,
    Rotary,
    RotaryEmbedding,
    Router,
    attend_latent,
    glu,
    project,
)
from zoo_deepseek.config import DeepseekConfig

# The modules' own default, whatever rms_norm_eps says.
_LORA_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head latent attention; the cache holds one latent and one rotated key per token, for all heads."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.rank = config.kv_lora_rank
        self.nope, self.rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.scale = config.softmax_scale
        heads = config.num_attention_heads
        self.declare_queries(config)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, self.rank + self.rope)
        self.kv_a_layernorm = RMSNorm(self.rank, _LORA_EPS)
        self.k_b_proj = HeadLinear(heads, self.nope, self.rank, transposed=not config.k_b_transposed)
        self.v_b_proj = HeadLinear(heads, self.rank, config.v_head_dim)
        self.o_proj = Linear(heads * config.v_head_dim, config.hidden_size)

    def declare_queries(self, config: DeepseekConfig) -> None:
        """One matrix makes the queries."""
        self.q_proj = Linear(config.hidden_size, config.num_attention_heads * (self.nope + self.rope))

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """[T, D] -> queries [T, N * (P + R)] and compressed keys and values [T, C + R]."""
        q, kv_a = project(hidden_states, self.q_proj, self.kv_a_proj_with_mqa)
        return q, kv_a

    def forward(self, hidden_states: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry) -> Tensor:
        """[T, D] -> [T, D]."""
        q, kv_a = self.project(hidden_states)
        q_nope, q_rope = q.unflatten(-1, (-1, self.nope + self.rope)).split((self.nope, self.rope), dim=-1)
        latent, k_rope = kv_a.split((self.rank, self.rope), dim=-1)
        latent = self.kv_a_layernorm(latent)
        out = attend_latent(
            q_nope, q_rope, latent, k_rope, self.k_b_proj, self.v_b_proj, rotary, batch, kv, scale=self.scale
        )
        return self.o_proj(out)


class LowRankQueryAttention(Attention):
    """As Attention, with queries through a bottleneck (all but V2-Lite)."""

    def declare_queries(self, config: DeepseekConfig) -> None:
        """Two matrices with a norm between them make the queries."""
        assert config.q_lora_rank is not None
        self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, _LORA_EPS)
        self.q_b_proj = Linear(config.q_lora_rank, config.num_attention_heads * (self.nope + self.rope))

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """[T, D] -> queries [T, N * (P + R)] and compressed keys and values [T, C + R]."""
        q_a, kv_a = project(hidden_states, self.q_a_proj, self.kv_a_proj_with_mqa)
        return self.q_b_proj(self.q_a_layernorm(q_a)), kv_a


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
    """Routed experts."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.gate = Router(
            config.hidden_size, config.n_routed_experts, config.routing, correction=config.correction_bias
        )
        self.experts = Experts(config.n_routed_experts, config.hidden_size, config.moe_intermediate_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.experts(hidden_states, *self.gate(hidden_states))


class SharedMoE(MoE):
    """Routed experts beside shared ones, which see every token."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        self.shared_experts = MLP(config.hidden_size, config.shared_intermediate_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.experts(hidden_states, *self.gate(hidden_states), add=self.shared_experts(hidden_states))


class DecoderLayer(nn.Module):
    """Attention and MLP or experts, each behind a norm. `delta` is what the previous block adds to the residual."""

    def __init__(self, config: DeepseekConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config) if config.q_lora_rank is None else LowRankQueryAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module
        if not config.moe_layers[index]:
            self.mlp = MLP(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = SharedMoE(config) if config.shared_intermediate_size else MoE(config)

    def forward(
        self, delta: Tensor | None, residual: Tensor, rotary: Rotary, batch: Batch, kv: CacheEntry
    ) -> tuple[Tensor, Tensor]:
        """(delta, residual), each [T, D], before -> after this layer."""
        hidden_states, residual = self.input_layernorm(residual, add=delta)
        delta = self.self_attn(hidden_states, rotary, batch, kv)
        hidden_states, residual = self.post_attention_layernorm(residual, add=delta)
        return self.mlp(hidden_states), residual


class DeepseekModel(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: DeepseekConfig) -> None:
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


class DeepseekForCausalLM(nn.Module):
    """The decoder with its head."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.config = config
        self.notes = config.notes
        self.model = DeepseekModel(config)
        tied_to = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = LMHead(config.hidden_size, config.vocab_size, tied_to=tied_to)

    def hidden(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D]."""
        return self.model(batch, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [L, V] of hidden states [L, D]."""
        return self.lm_head(hidden)

    def cache_spec(self) -> list[CacheSpec]:
        """Every layer keeps one latent and one rotated key per token."""
        return [LatentAttention(self.config.kv_lora_rank, self.config.qk_rope_head_dim)] * self.config.num_hidden_layers

    def finalize(self, device: torch.device, dtype: torch.dtype) -> None:
        """The compute type is known: float16 is one that a user should hear about."""
        if dtype == torch.float16:
            self.notes += ("float16 overflows in the large DeepSeek models: use --dtype bfloat16 or float32",)

    def ignores(self, name: str) -> bool:
        """Layers of multi-token prediction follow the last one; a fused kv_b may lie beside its two halves."""
        if self.config.ignored_kv_b and name.endswith(".attn_kv_b.weight"):
            return True
        layer = re.match(r"(?:model\.layers|blk)\.(\d+)\.", name)
        return layer is not None and int(layer[1]) in self.config.mtp_layers
