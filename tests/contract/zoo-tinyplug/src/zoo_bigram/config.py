"""The configuration of a bigram model, from config.json or from GGUF metadata."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.plugin import ConfigReader, ModelSource


@dataclass(frozen=True)
class BigramConfig:
    """Sizes, under their config.json names."""

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_hf(cls, source: ModelSource) -> BigramConfig:
        """From config.json."""
        read = ConfigReader.hf(source)
        return cls(
            vocab_size=read.size("vocab_size"),
            hidden_size=read.size("hidden_size"),
            max_position_embeddings=read.size("max_position_embeddings"),
            eos_token_ids=read.ids("eos_token_id"),
        )

    @classmethod
    def from_gguf(cls, source: ModelSource) -> BigramConfig:
        """From GGUF metadata."""
        read = ConfigReader.gguf(source)
        return cls(
            vocab_size=read.vocab_size(),
            hidden_size=read.size(".embedding_length"),
            max_position_embeddings=read.size(".context_length"),
            eos_token_ids=read.ids("tokenizer.ggml.eos_token_id"),
        )
