"""Tiny random checkpoints, written by transformers as a publisher would: config.json, safetensors, tokenizer.json.

The weights are large (initializer_range 0.2 at 64 columns), so that a wrong rotation or a lost bias moves the logits by
far more than rounding does; at 0.02 most mistakes would pass. What transformers starts at 0 or 1 is made random too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

VOCAB_SIZE = 320
_CORPUS = (
    "1234567 12345 2024 the theory of the then, 3.14159 other words\n\n"
    "It isn't what they'd say: every other day, 99 brown dogs and 1001 cats jump over a fence.\n"
)
CONTROL_TOKENS = ("<s>", "</s>", "<|im_end|>")

# Llama 3's way of cutting text, as its tokenizer.json has it.
_LLAMA3_SPLIT = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def llama_config(**changes: Any) -> LlamaConfig:
    """A Llama of 3 layers with grouped queries; `changes` are keys of LlamaConfig."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }
    # 0.2 at 64 columns, and the same logits at others: their deviation grows with the root of the width.
    values.setdefault("initializer_range", 1.6 / values["hidden_size"] ** 0.5)
    return LlamaConfig(**values)


def save_checkpoint(
    directory: Path, config: PretrainedConfig, *, seed: int = 0, max_shard_size: str = "1GB", tokenizer: bool = True
) -> PreTrainedModel:
    """Write a random checkpoint of any causal family; returns the float32 model in eval mode with eager attention."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    randomise(model)
    model.eval().save_pretrained(directory, max_shard_size=max_shard_size)
    if tokenizer:
        tiny_tokenizer().save(str(directory / "tokenizer.json"))
    return model


@torch.no_grad()
def randomise(model: PreTrainedModel) -> None:
    """Make biases and norms random, which start as constants."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.3)
        elif parameter.ndim == 1:
            parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Float32 [T, vocab] by transformers."""
    return model(torch.tensor([list(ids)])).logits[0]


def sample_ids(count: int, vocab_size: int = VOCAB_SIZE, *, seed: int = 0) -> list[int]:
    """Random token ids, control tokens left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(CONTROL_TOKENS), vocab_size, (count,), generator=generator).tolist()


@cache
def vocabulary() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Tokens by id and merges of a byte-level BPE of VOCAB_SIZE tokens.

    It is trained on uncut text, so that merges cross digits and words and ids depend on the pre-tokeniser.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=6,
        show_progress=False,
    )
    trained.train_from_iterator([_CORPUS] * 3, trainer)
    state = json.loads(trained.to_str())["model"]
    tokens = (*CONTROL_TOKENS, *sorted(state["vocab"], key=state["vocab"].get))
    assert len(tokens) == VOCAB_SIZE, f"{len(tokens)} tokens came of the training"
    return tokens, tuple((left, right) for left, right in state["merges"])


def tiny_tokenizer() -> Tokenizer:
    """The vocabulary as a tokenizer of Llama 3's kind."""
    tokens, merges = vocabulary()
    table = {token: id for id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(table, list(merges), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CONTROL_TOKENS])
    return tokenizer
