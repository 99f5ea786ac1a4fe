"""zoo-mistral passes the tests that authors subclass: Ministral with its windows, Ministral 3, and Mixtral."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import zoo_mistral.plugin
from oracle import gguf_writer
from oracle.checkpoints import save_checkpoint
from oracle.mistral_checkpoints import WINDOW, mistral_config
from oracle.mistral_gguf import mistral_contents
from plugins.test_conformance import transformers_reference
from zoo.testing import PluginConformance


class TestMinistral(PluginConformance):
    """Windows in three layers of four; its GGUF says so."""

    plugin = zoo_mistral.plugin.plugin
    variant = "Ministral 8B"

    def write_checkpoint(self, directory: Path) -> None:
        save_checkpoint(directory, mistral_config(self.variant))

    def write_gguf(self, directory: Path, target: Path) -> bool:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        contents = mistral_contents(model)
        if self.variant == "Ministral 8B":
            slides = [kind == "sliding_attention" for kind in model.config.layer_types]
            contents.keys |= {
                "llama.attention.sliding_window": WINDOW,
                "llama.attention.sliding_window_pattern": slides,
            }
        gguf_writer.write(target, contents)
        return True

    def reference(self, directory: Path, ids: Sequence[int]) -> tuple[Tensor, Sequence[Tensor]]:
        return transformers_reference(directory, ids)


class TestMinistral3(TestMinistral):
    variant = "Ministral 3"


class TestMixtral(TestMinistral):
    variant = "Mixtral 8x7B"
