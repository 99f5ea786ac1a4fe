"""zoo-qwen passes the tests that authors subclass: dense Qwen2 and Qwen3, and experts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import zoo_qwen.plugin
from oracle.gguf_writer import write
from oracle.qwen_checkpoints import save_qwen
from oracle.qwen_gguf import qwen_contents
from plugins.parity import transformers_reference
from zoo.testing import PluginConformance


class _Qwen(PluginConformance):
    plugin = zoo_qwen.plugin.plugin
    variant: str

    def write_checkpoint(self, directory: Path) -> None:
        save_qwen(directory, self.variant)

    def write_gguf(self, directory: Path, target: Path) -> bool:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        write(target, qwen_contents(model))
        return True

    def reference(self, directory: Path, ids: Sequence[int]) -> tuple[Tensor, Sequence[Tensor]]:
        return transformers_reference(directory, ids)


class TestQwen2(_Qwen):
    variant = "qwen2 yarn"


class TestQwen3(_Qwen):
    variant = "qwen3 tied"


class TestQwen2Moe(_Qwen):
    variant = "qwen2 moe"
