"""zoo-phi's three models pass the tests that authors subclass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

import zoo_phi.plugin
from oracle.checkpoints import save_checkpoint
from oracle.gguf_writer import write
from oracle.phi_checkpoints import phi2_config, phi4_mini_config, phimoe_config
from oracle.phi_gguf import phi_contents
from zoo.testing import PluginConformance


class PhiConformance(PluginConformance):
    """Both formats. 48 tokens are past the windows below and past the original context of LongRoPE."""

    plugin = zoo_phi.plugin.plugin

    def config(self) -> PretrainedConfig:
        raise NotImplementedError

    def write_checkpoint(self, directory: Path) -> None:
        save_checkpoint(directory, self.config())

    def write_gguf(self, directory: Path, target: Path) -> bool:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        write(target, phi_contents(model))
        return True

    def reference(self, directory: Path, ids: Sequence[int]) -> tuple[Tensor, Sequence[Tensor]]:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            out = model(torch.tensor([list(ids)]), output_hidden_states=True)
        return out.logits[0], [state[0] for state in out.hidden_states]


class TestPhi2(PhiConformance):
    required_tensor = "model.final_layernorm.weight"

    def config(self) -> PretrainedConfig:
        return phi2_config()


class TestPhi3(PhiConformance):
    def config(self) -> PretrainedConfig:
        return phi4_mini_config(original_max_position_embeddings=32, sliding_window=17)


class TestPhiMoE(PhiConformance):
    def config(self) -> PretrainedConfig:
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        return phimoe_config(rope_parameters=rope, sliding_window=17)
