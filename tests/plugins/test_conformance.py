"""Both plugins pass the tests that authors subclass, and those tests can fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV3Config

import zoo_deepseek.plugin
import zoo_llama.plugin
from oracle import checkpoints, deepseek_gguf, gguf_writer
from plugins.parity import transformers_reference
from zoo import LLM
from zoo.testing import ModelRuleError, PluginConformance, model_rules


class TestLlama(PluginConformance):
    plugin = zoo_llama.plugin.plugin

    def write_checkpoint(self, directory: Path) -> None:
        checkpoints.save_checkpoint(directory, checkpoints.llama_config(attention_bias=True))

    def write_gguf(self, directory: Path, target: Path) -> bool:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        gguf_writer.write(target, gguf_writer.llama_contents(model))
        return True

    def reference(self, directory: Path, ids: Sequence[int]) -> tuple[Tensor, Sequence[Tensor]]:
        return transformers_reference(directory, ids)


class TestDeepseek(PluginConformance):
    plugin = zoo_deepseek.plugin.plugin

    def write_checkpoint(self, directory: Path) -> None:
        config = DeepseekV3Config(
            vocab_size=checkpoints.VOCAB_SIZE, hidden_size=64, intermediate_size=96, moe_intermediate_size=32,
            num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=16, n_shared_experts=1,
            num_experts_per_tok=3, n_group=4, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True,
            q_lora_rank=24, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
            first_k_dense_replace=1, initializer_range=0.2, max_position_embeddings=256, eos_token_id=1, bos_token_id=0,
        )  # fmt: skip
        checkpoints.save_checkpoint(directory, config)

    def write_gguf(self, directory: Path, target: Path) -> bool:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        gguf_writer.write(target, deepseek_gguf.deepseek_contents(model))
        return True

    def reference(self, directory: Path, ids: Sequence[int]) -> tuple[Tensor, Sequence[Tensor]]:
        return transformers_reference(directory, ids)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    path = tmp_path_factory.mktemp("llama")
    checkpoints.save_checkpoint(path, checkpoints.llama_config())
    return LLM.load(path, dtype="float32")


def test_the_rules_see_a_value_that_model_code_reads(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo_llama import model

    monkeypatch.setattr(model, "honest", model.MLP.forward, raising=False)
    # The code must live in the plugin's module: that is where the rules hold.
    exec("def forward(self, x):\n    assert x.sum().item() is not None\n    return honest(self, x)", vars(model))
    monkeypatch.setattr(model.MLP, "forward", vars(model).pop("forward"))
    with pytest.raises(ModelRuleError, match="item reads a tensor's value"), model_rules():
        llm.logits([5, 6, 7])


def test_the_rules_see_arithmetic_in_decode(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo_llama import model

    monkeypatch.setattr(model, "honest", model.MLP.forward, raising=False)
    exec("def forward(self, x):\n    return honest(self, x * 2)", vars(model))
    monkeypatch.setattr(model.MLP, "forward", vars(model).pop("forward"))
    with model_rules():
        llm.logits([5, 6, 7])
    with pytest.raises(ModelRuleError, match="neither an op of zoo nor a view"), model_rules(decode=True):
        llm.logits([5])


def test_a_wrong_model_is_told_by_its_first_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo_llama import model

    suite = TestLlama()
    suite.write_checkpoint(tmp_path)
    with suite._load(tmp_path) as llm:
        attention = llm.model.model.layers[1].self_attn  # type: ignore[attr-defined]
        monkeypatch.setattr(attention, "scale", attention.scale * 1.5)
        assert isinstance(attention, model.Attention)
        with pytest.raises(pytest.fail.Exception, match="first hidden state that differs is 2 of 3"):
            suite.test_reference_agrees(llm, tmp_path)
