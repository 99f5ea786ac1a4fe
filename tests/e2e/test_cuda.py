"""The model on a GPU, through the reference kernels. Skipped, with that reason, where there is no CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from zoo import LLM, SamplingParams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a byte-level tokenizer, written by transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, eos_token_id=319,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tiny-llama")
    LlamaForCausalLM(config).save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_cuda_logits_equal_the_cpu_ones(directory: Path) -> None:
    ids = [(i * 37 + 5) % 320 for i in range(100)]
    with (
        LLM.load(directory, device="cpu", dtype="float32") as cpu,
        LLM.load(directory, device="cuda", dtype="float32") as gpu,
    ):
        assert gpu.info.device.startswith("cuda")
        assert (cpu.logits(ids) - gpu.logits(ids).cpu()).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_generates_the_same_text_for_the_same_seed(directory: Path, dtype: str) -> None:
    params = SamplingParams(max_tokens=20, temperature=0.8, seed=3, ignore_eos=True)
    with LLM.load(directory, device="cuda", dtype=dtype) as llm:
        first = llm.generate([1, 2, 3], params).token_ids
        assert len(first) == 20
        assert llm.generate([[1, 2, 3], [9, 8]], params)[0].token_ids == first
        assert isinstance(llm.model, nn.Module)
