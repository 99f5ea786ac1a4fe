"""A bigram model: logits of the next token from the embedding of the last. Remembers nothing, so it has no cache."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.batch import Batch
from zoo.cache import CacheSpec, KVCache
from zoo.nn import Embedding, LMHead
from zoo_bigram.config import BigramConfig


class BigramForCausalLM(nn.Module):
    """Embedding and head."""

    def __init__(self, config: BigramConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.lm_head = LMHead(config.hidden_size, config.vocab_size)

    def hidden(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states [T, D]."""
        hidden: Tensor = self.embed_tokens(batch.input_ids)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 [L, V] of hidden states [L, D]."""
        logits: Tensor = self.lm_head(hidden)
        return logits

    def cache_spec(self) -> list[CacheSpec]:
        """Nothing to keep."""
        return []
