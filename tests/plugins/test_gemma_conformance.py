"""All three generations of zoo-gemma pass the tests that authors subclass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from oracle import gguf_writer
from oracle.gemma_checkpoints import WINDOW, save_gemma
from oracle.gemma_gguf import gemma_contents
from plugins.parity import transformers_reference
from zoo.testing import PluginConformance
from zoo_gemma.plugin import plugin


class TestGemma1(PluginConformance):
    plugin = plugin
    variant = "gemma1"

    def write_checkpoint(self, directory: Path) -> None:
        assert self.tokens > 2 * WINDOW
        save_gemma(directory, self.variant)

    def write_gguf(self, directory: Path, target: Path) -> bool:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        gguf_writer.write(target, gemma_contents(model))
        return True

    def reference(self, directory: Path, ids: Sequence[int]) -> tuple[Tensor, Sequence[Tensor]]:
        return transformers_reference(directory, ids)


class TestGemma2(TestGemma1):
    variant = "gemma2"


class TestGemma3(TestGemma1):
    variant = "gemma3 linear"
