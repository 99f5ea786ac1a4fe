"""zoo-deepseek against transformers, on tiny random checkpoints in safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from oracle import checkpoints
from oracle.checkpoints import sample_ids
from oracle.deepseek_checkpoints import (
    VARIANTS,
    fp8_config,
    fp8_tensors,
    rewrite,
    save_deepseek,
    tensors_of,
    with_weights,
)
from plugins.deepseek_tools import LENGTH, Made, assert_equal, loaded, maker, zoo_logits
from plugins.parity import run_chunks
from plugins.rules import rules
from zoo import SamplingParams
from zoo.engine.scheduler import Chunk
from zoo.engine.sequence import Sequence
from zoo.errors import ContextLengthError, PluginError
from zoo.quant.tensor import QuantTensor


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return maker(tmp_path_factory)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(made: Made, variant: str) -> None:
    path, model = made(variant)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


@pytest.mark.parametrize("variant", ["v2-lite", "v2", "v3"])
def test_token_by_token_equals_transformers(made: Made, variant: str) -> None:
    """The absorbed form of attention answers here, in a prefill the expanded one."""
    path, model = made(variant)
    ids = sample_ids(LENGTH)
    with loaded(path) as llm:
        assert_equal(llm.model.logits(llm._engine.hidden(tuple(ids), 1)), checkpoints.logits(model, ids))


def test_sharded_and_half_precision_files(tmp_path: Path) -> None:
    model = save_deepseek(tmp_path, "v3", max_shard_size="300KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    ids = sample_ids(LENGTH)
    exact = checkpoints.logits(model, ids)
    assert_equal(zoo_logits(tmp_path, ids), exact)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager").eval()
    half.model.layers[2].mlp.gate.float()  # as DeepSeek computes it: transformers keeps the bias in float32 only
    half.model.layers[3].mlp.gate.float()
    theirs = (checkpoints.logits(half, ids).float() - exact).square().mean().sqrt()
    ours = (zoo_logits(tmp_path, ids, dtype="bfloat16", cache_dtype="bfloat16") - exact).square().mean().sqrt()
    assert 0 < ours < 1.5 * theirs


# --- What published files do and transformers' writer does not ---


def as_published(variant: str, config: dict[str, Any]) -> None:
    """The keys that releases have beyond those that transformers writes, in the spelling of their time."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = rope if rope["type"] != "default" else None
    v2 = variant.startswith("v2")
    config |= {"scoring_func": "softmax" if v2 else "sigmoid", "moe_layer_freq": 1, "seq_aux": True, "ep_size": 1}
    if not v2:
        config |= {"topk_method": "noaux_tc", "num_nextn_predict_layers": 1}
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM"}


@pytest.mark.parametrize("variant", ["v2-lite", "v2", "v3"])
def test_configurations_as_published(made: Made, tmp_path: Path, variant: str) -> None:
    path, model = made(variant)
    config = json.loads((path / "config.json").read_text())
    as_published(variant, config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(path / name)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


def test_greedy_is_misspelt_in_old_configurations(made: Made, tmp_path: Path) -> None:
    path, model = made("v2-lite")
    rewrite(path, tmp_path, tensors_of(path), topk_method="gready")
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


def test_v2_normalises_or_scales(made: Made, tmp_path: Path) -> None:
    """In DeepSeek-V2's own code `norm_topk_prob` takes the place of the factor; no release sets it, transformers
    ignores it. Here the reference's router is told to do so.
    """
    path, model = made("v2")
    rewrite(path, tmp_path, tensors_of(path), norm_topk_prob=True)
    handles = [
        layer.mlp.gate.register_forward_hook(
            lambda module, inputs, out: (out[0], out[1] / out[1].sum(-1, keepdim=True), out[2])
        )
        for layer in model.model.layers[1:]
    ]
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(model, ids)
    for handle in handles:
        handle.remove()
    assert_equal(zoo_logits(tmp_path, ids), wanted)


def test_moe_layer_freq(tmp_path: Path) -> None:
    """Layers whose number it does not divide are dense. transformers does not know the key: its layer is replaced."""
    model = save_deepseek(tmp_path / "whole", "v3", num_hidden_layers=5, first_k_dense_replace=1)
    torch.manual_seed(1)
    tensors = tensors_of(tmp_path / "whole")
    for layer in (1, 3):
        dense = type(model.model.layers[0].mlp)(model.config)
        nn.init.normal_(dense.gate_proj.weight, 0, 0.2)
        nn.init.normal_(dense.up_proj.weight, 0, 0.2)
        nn.init.normal_(dense.down_proj.weight, 0, 0.2)
        model.model.layers[layer].mlp = dense
        tensors = {name: value for name, value in tensors.items() if f"layers.{layer}.mlp." not in name}
        tensors |= {f"model.layers.{layer}.mlp.{name}": value for name, value in dense.state_dict().items()}
    rewrite(tmp_path / "whole", tmp_path / "mixed", tensors, moe_layer_freq=2)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path / "mixed", ids), checkpoints.logits(model, ids))


def mtp_tensors(tensors: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    """A further layer as V3 and R1 have it for multi-token prediction, full of NaN: nothing may read it."""
    last = f"model.layers.{layer - 1}."
    names = {name.replace(last, f"model.layers.{layer}."): value for name, value in tensors.items() if last in name}
    for name in ("eh_proj", "enorm", "hnorm", "embed_tokens", "shared_head.norm", "shared_head.head"):
        names[f"model.layers.{layer}.{name}.weight"] = torch.ones(4, 4)
    return {name: torch.full_like(value, torch.nan) for name, value in names.items()}


def test_the_layer_of_multi_token_prediction_is_ignored(made: Made, tmp_path: Path) -> None:
    path, model = made("v3")
    tensors = tensors_of(path)
    rewrite(path, tmp_path, tensors | mtp_tensors(tensors, 4), num_nextn_predict_layers=1)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


# --- FP8 ---


@pytest.mark.parametrize("block", [(128, 128), (16, 16)])
def test_fp8_equals_the_unpacked_weights(made: Made, tmp_path: Path, block: tuple[int, int]) -> None:
    """Blocks of 16 leave a rest in every matrix but few; heads of 16 + 12 rows are cut inside them."""
    path, model = made("v3")
    packed, exact = fp8_tensors(tensors_of(path), block)
    rewrite(path, tmp_path / "fp8", packed, **fp8_config(block))
    rewrite(path, tmp_path / "plain", exact)
    reference = with_weights(model, tmp_path / "plain")
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(reference, ids)
    assert (wanted - checkpoints.logits(model, ids)).abs().max() > 0.1, "rounding to FP8 should be seen"
    assert_equal(zoo_logits(tmp_path / "fp8", ids), wanted)


def test_fp8_with_the_shapes_of_v3(tmp_path: Path) -> None:
    """576 rows of kv_a: the last of 5 blocks has 64. Heads of 128 + 128 rows, cut between blocks."""
    model = save_deepseek(
        tmp_path / "model", "v3", hidden_size=256, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128,
        v_head_dim=128, num_hidden_layers=2, first_k_dense_replace=1, moe_intermediate_size=192, n_routed_experts=8,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    packed, exact = fp8_tensors(tensors_of(tmp_path / "model"), (128, 128))
    scale = packed["model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"]
    assert packed["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].shape[0] == 576
    assert scale.shape == (5, 2)
    rewrite(tmp_path / "model", tmp_path / "fp8", packed, **fp8_config((128, 128)))
    rewrite(tmp_path / "model", tmp_path / "plain", exact)
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(with_weights(model, tmp_path / "plain"), ids)
    with loaded(tmp_path / "fp8") as llm:
        assert_equal(llm.logits(ids), wanted)
        assert_equal(llm.model.logits(llm._engine.hidden(tuple(ids), 1)), wanted)
        attention = llm.model.get_submodule("model.layers.1.self_attn")
        assert isinstance(attention.kv_a_proj_with_mqa.weight, QuantTensor)
        for name in ("k_b_proj", "v_b_proj"):
            assert getattr(attention, name).weight.block == (128, 128), "whole blocks need no new scales"


# --- Sparse attention and what comes after ---


def test_v32_is_dense_up_to_its_choice(made: Made, tmp_path: Path) -> None:
    path, model = made("v3.2")
    ids = sample_ids(128)
    with loaded(path) as llm:
        assert llm.context == 128, "index_topk of the checkpoint, not max_position_embeddings"
        assert any("sparse attention" in note for note in llm.notes)
        assert_equal(llm.logits(ids), checkpoints.logits(model, ids))
        with pytest.raises(ContextLengthError, match="129 tokens, the context 128"):
            llm.logits([*ids, 5])
    with loaded(path, context=128) as llm:
        assert llm.context == 128
    with pytest.raises(ContextLengthError, match=r"sparse attention of DeepSeek-V3\.2 is not implemented") as caught:
        loaded(path, context=129).__enter__()
    assert caught.value.remedy
    rewrite(path, tmp_path, tensors_of(path), index_topk=None)
    with loaded(tmp_path, overrides={"max_position_embeddings": 163840}) as llm:
        assert llm.context == 2048, "what all releases choose"


def test_v32_beyond_its_choice_is_another_model(made: Made) -> None:
    """The refusal has a reason: past index_topk transformers' logits are not those of dense attention."""
    path, model = made("v3.2")
    ids = sample_ids(200)
    wanted = checkpoints.logits(model, ids)
    with loaded(path, overrides={"index_topk": 256}) as llm:
        found = llm.logits(ids)
    assert (found[:128] - wanted[:128]).abs().max() < 1e-3
    assert (found[128:] - wanted[128:]).abs().max() > 0.1


def test_v4_is_refused_with_the_reason(made: Made, tmp_path: Path) -> None:
    path, _ = made("v3")
    rewrite(path, tmp_path, tensors_of(path), architectures=["DeepseekV4ForCausalLM"], model_type="deepseek_v4")
    with pytest.raises(PluginError, match="DeepSeek-V4's hybrid attention and hyper-connections"):
        loaded(tmp_path).__enter__()


@pytest.mark.parametrize(
    ("architecture", "distribution"),
    [("LlamaForCausalLM", "zoo-llama"), ("Qwen2ForCausalLM", "zoo-qwen"), ("Qwen3ForCausalLM", "zoo-qwen")],
)
def test_distilled_models_name_the_distribution_they_need(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, distribution: str
) -> None:
    """R1-Distill-Llama and R1-Distill-Qwen carry DeepSeek's name, and are no DeepSeeks."""
    path, _ = made("v3")
    target = tmp_path / "DeepSeek-R1-Distill-8B"
    rewrite(path, target, tensors_of(path), architectures=[architecture])
    monkeypatch.setenv("ZOO_PLUGINS", "deepseek")
    with pytest.raises(PluginError) as caught:
        loaded(target).__enter__()
    assert distribution in str(caught.value)


# --- One batch is like another ---


@pytest.mark.parametrize("variant", ["v2", "v3"])
def test_a_ragged_batch_equals_each_sequence_alone(made: Made, variant: str) -> None:
    """Prefill, chunk and decode in the same step: both forms of attention in one batch."""
    path, model = made(variant)
    a, b, c = sample_ids(70, seed=1), sample_ids(33, seed=2), sample_ids(5, seed=3)
    steps = [[(a, 0, 40), (b, 0, 1)], [(b, 1, 33), (a, 40, 41), (c, 0, 4)], [(c, 4, 5), (a, 41, 70)]]
    with loaded(path) as llm:
        found = run_chunks(llm, steps)
    for ids in (a, b, c):
        assert_equal(found[id(ids)], checkpoints.logits(model, ids))


def test_generation_equals_transformers(made: Made) -> None:
    path, model = made("v3")
    prompts = [sample_ids(count, seed=count) for count in (1, 3, 40, 65)]
    with loaded(path) as llm:
        params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
        found = [result.token_ids for result in llm.generate(prompts, params)]
    for prompt, ids in zip(prompts, found, strict=True):
        assert list(ids) == greedy(model, prompt, 16)


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    wanted = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=1
    )
    ids: list[int] = wanted[0, len(prompt) :].tolist()
    return ids


# --- The rules of model code, and what a step reads ---


@pytest.mark.parametrize("variant", ["v2-lite", "v3", "v3 shared 0"])
def test_model_code_keeps_the_rules(made: Made, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    path, _ = made(variant)
    with loaded(path) as llm, torch.inference_mode():
        engine, cache = llm._engine, llm._engine.runner.cache
        sequence = Sequence("r", tuple(sample_ids(9)), SamplingParams(), frozenset(), 1)
        for manager in engine.scheduler.managers:
            manager.grow("r", 9)
        batch = engine.runner.batch([Chunk(sequence, 0, 9)], engine.scheduler.managers)
        with rules(monkeypatch, decode=False) as ops:
            llm.model.logits(llm.model.hidden(batch, cache))
        layers = llm.model.config.num_hidden_layers
        experts = sum(llm.model.config.moe_layers)
        assert ops.count("attend_latent") == layers
        assert ops.count("route") == ops.count("moe") == experts


def poison(llm: Any, chosen: dict[int, set[int]]) -> int:
    """Fill every expert that is not chosen with NaN; returns how many."""
    count = 0
    for index, layer in enumerate(llm.model.model.layers):
        if not llm.model.config.moe_layers[index]:
            continue
        for name in ("gate_proj", "up_proj", "down_proj"):
            weights = getattr(layer.mlp.experts, name)
            views = [w if e in chosen[index] else torch.full_like(w, torch.nan) for e, w in enumerate(weights.views)]
            count += len(views) - len(chosen[index])
            setattr(layer.mlp.experts, name, type(weights)(views))
    return count


def test_a_decode_step_touches_only_the_experts_it_uses(made: Made) -> None:
    path, model = made("v3")
    ids = sample_ids(20)
    with torch.no_grad():
        chosen: dict[int, set[int]] = {}
        handles = []
        for index, layer in enumerate(model.model.layers):
            if hasattr(layer.mlp, "gate"):
                keep = lambda module, inputs, out, i=index: chosen.update({i: set(out[2][-1].tolist())})  # noqa: E731
                handles.append(layer.mlp.gate.register_forward_hook(keep))
        wanted = checkpoints.logits(model, ids)[-1:]
        for handle in handles:
            handle.remove()
    with loaded(path) as llm:
        engine = llm._engine
        sequence = Sequence("r", tuple(ids), SamplingParams(), frozenset(), 1)
        for manager in engine.scheduler.managers:
            manager.grow("r", 20)
        runner, managers = engine.runner, engine.scheduler.managers
        runner.forward(runner.batch([Chunk(sequence, 0, 19)], managers))
        assert poison(llm, chosen) == 2 * 3 * (16 - 3)
        found = runner.forward(runner.batch([Chunk(sequence, 19, 1)], managers))
        assert_equal(found, wanted)
        # What was poisoned is what a longer prompt would have read.
        assert runner.forward(runner.batch([Chunk(sequence, 0, 19)], managers, all_logits=True)).isnan().any()


def test_the_independent_writer_shares_nothing_with_the_plugin() -> None:
    for name in ("deepseek_gguf", "deepseek_checkpoints"):
        assert "zoo_deepseek" not in (Path(__file__).parents[1] / f"oracle/{name}.py").read_text()
