"""zoo-qwen against transformers and llama.cpp, on tiny random checkpoints in both formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from oracle import checkpoints
from oracle.checkpoints import sample_ids
from oracle.deepseek_checkpoints import fp8_config, fp8_tensors, rewrite, tensors_of, with_weights
from oracle.deepseek_gguf import packable
from oracle.gguf_writer import fuse_qkv, rounded, write
from oracle.qwen_checkpoints import VARIANTS, YARN, qwen_config, save_qwen
from oracle.qwen_gguf import fuse_gate_up, qwen_contents
from plugins.parity import TOLERANCE, assert_equal, llamacpp_logits, loaded, run_chunks, zoo_logits
from plugins.rules import rules
from zoo import SamplingParams
from zoo.engine.scheduler import Chunk
from zoo.engine.sequence import Sequence
from zoo.quant.experts import ExpertWeights

LENGTH = 100  # past the original context of YaRN, which is 32, and past the window, which is 24

# What has no key in GGUF: a file is the model that these keys of config.json would make.
FULL: dict[str, Any] = {"use_sliding_window": False, "layer_types": None}
LOST: dict[str, dict[str, Any]] = {
    **{name: FULL for name, (_, values) in VARIANTS.items() if "use_sliding_window" in values},
    "qwen2 moe normalised": {"norm_topk_prob": False},
    "qwen3 moe not normalised": {"norm_topk_prob": True},
}
# What llama.cpp does not load: tensors that no release has.
UNKNOWN_TO_LLAMACPP = (
    "qwen3 biases", "qwen2 moe tied", "qwen2 moe every second layer", "qwen2 moe with a dense layer",
    "qwen3 moe with dense layers",
)  # fmt: skip

Made = Callable[[str], tuple[Path, PreTrainedModel]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Checkpoints by variant, each written once."""
    known: dict[str, tuple[Path, PreTrainedModel]] = {}

    def make(variant: str) -> tuple[Path, PreTrainedModel]:
        if variant not in known:
            path = tmp_path_factory.mktemp(variant.replace(" ", "-"))
            known[variant] = path, save_qwen(path, variant)
        return known[variant]

    return make


# --- Parity ---


@pytest.mark.parametrize("variant", VARIANTS)
def test_safetensors_logits_equal_transformers(made: Made, variant: str) -> None:
    path, model = made(variant)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gguf_logits_equal_safetensors_and_llamacpp(made: Made, variant: str, tmp_path: Path) -> None:
    directory, model = made(variant)
    (path,) = write(tmp_path / "model.gguf", qwen_contents(model))
    ids = sample_ids(LENGTH)
    found = zoo_logits(path, ids)
    assert_equal(found, zoo_logits(directory, ids, overrides=LOST.get(variant, {})))
    if variant in UNKNOWN_TO_LLAMACPP:
        with pytest.raises(ValueError, match="does not load"):
            llamacpp_logits(path, ids)
    else:
        assert_equal(found, llamacpp_logits(path, ids))


@pytest.mark.parametrize("variant", LOST)
def test_what_gguf_loses_matters(made: Made, variant: str) -> None:
    """Or the tests that use these checkpoints could not fail."""
    path, model = made(variant)
    ids = sample_ids(LENGTH)
    lost = (zoo_logits(path, ids, overrides=LOST[variant]) - checkpoints.logits(model, ids)).abs().max()
    assert lost < TOLERANCE if variant == "qwen2 window beyond the last layer" else lost > 100 * TOLERANCE


@pytest.mark.parametrize("variant", ["qwen2 wide", "qwen2 moe wide"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K", "Q5_0"])
@pytest.mark.usefixtures("reference_kernels")
def test_quantised_gguf_equals_its_rounded_weights_in_float32(
    made: Made, tmp_path: Path, variant: str, kind: str
) -> None:
    contents = qwen_contents(made(variant)[1])
    types = packable(contents, kind, "Q8_0")
    (packed,) = write(tmp_path / "packed.gguf", contents, types=types)
    (dense,) = write(tmp_path / "dense.gguf", rounded(contents, types))
    ids = sample_ids(LENGTH)
    found = zoo_logits(packed, ids)
    assert_equal(found, llamacpp_logits(dense, ids))
    assert not torch.equal(found, checkpoints.logits(made(variant)[1], ids))


@pytest.mark.parametrize("variant", ["qwen2", "qwen3 moe", "qwen2 moe"])
def test_fused_tensors_equal_split_ones(made: Made, tmp_path: Path, variant: str) -> None:
    contents = qwen_contents(made(variant)[1])
    (split,) = write(tmp_path / "split.gguf", contents)
    fuse_qkv(contents)
    fuse_gate_up(contents)
    assert "blk.0.attn_qkv.weight" in contents.tensors
    assert ("blk.0.attn_qkv.bias" in contents.tensors) == (variant != "qwen3 moe")
    assert ("blk.0.ffn_gate_up_exps.weight" in contents.tensors) == ("moe" in variant)
    (fused,) = write(tmp_path / "fused.gguf", contents)
    ids = sample_ids(LENGTH)
    assert (zoo_logits(fused, ids) - zoo_logits(split, ids)).abs().max() < TOLERANCE


def test_the_attention_factor_of_gguf_counts_as_in_llamacpp(made: Made, tmp_path: Path) -> None:
    """R1-0528-Qwen3 has an attn_factor of 0.878 in its configuration, which takes YaRN's temperature away."""
    _, model = made("qwen3 yarn")
    contents = qwen_contents(model)
    contents.keys["qwen3.rope.scaling.attn_factor"] = 0.8782488562869419
    (path,) = write(tmp_path / "model.gguf", contents)
    ids = sample_ids(LENGTH)
    found = zoo_logits(path, ids)
    assert_equal(found, llamacpp_logits(path, ids))
    assert (found - checkpoints.logits(model, ids)).abs().max() > 100 * TOLERANCE


def test_the_betas_of_yarn_count_in_both_formats(tmp_path: Path) -> None:
    """llama.cpp does not read them for Qwen."""
    directory = tmp_path / "hf"
    model = save_qwen(directory, "qwen3 yarn", rope_parameters={**YARN, "beta_slow": 0.1})
    contents = qwen_contents(model)
    contents.keys["qwen3.rope.scaling.yarn_beta_slow"] = 0.1
    (path,) = write(tmp_path / "model.gguf", contents)
    ids = sample_ids(LENGTH)
    for file in (path, directory):
        assert_equal(zoo_logits(file, ids), checkpoints.logits(model, ids))
    plain = zoo_logits(path, ids, overrides={".rope.scaling.yarn_beta_slow": 1.0})
    assert (plain - checkpoints.logits(model, ids)).abs().max() > 100 * TOLERANCE


def test_early_files_of_qwen2_moe_lack_keys(made: Made, tmp_path: Path) -> None:
    contents = qwen_contents(made("qwen2 moe")[1])
    for key in ("expert_feed_forward_length", "expert_shared_feed_forward_length"):
        del contents.keys[f"qwen2moe.{key}"]
    (path,) = write(tmp_path / "early.gguf", contents)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(made("qwen2 moe")[1], ids))


# --- Configurations as they are published ---


def published(directory: Path, target: Path, **changes: Any) -> Path:
    """The checkpoint with other keys in config.json; a key set to None is taken out."""
    config = {**json.loads((directory / "config.json").read_text()), **changes}
    (target / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    for name in ("tokenizer.json", "model.safetensors"):
        (target / name).symlink_to(directory / name)
    return target


def test_the_spelling_of_releases(made: Made, tmp_path: Path) -> None:
    """A window that is switched off, and YaRN as the instructions of Qwen2.5 have it: the length stays as it was."""
    directory, model = made("qwen2 yarn")
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    path = published(
        directory, tmp_path, rope_parameters=None, rope_theta=10000.0, rope_scaling=scaling, layer_types=None,
        use_sliding_window=False, sliding_window=24, max_window_layers=1, max_position_embeddings=32,
    )  # fmt: skip
    ids = sample_ids(LENGTH)
    with loaded(path) as llm:
        assert llm.context == 128
        assert_equal(llm.logits(ids), checkpoints.logits(model, ids))


def test_the_context_of_yarn_in_gguf(made: Made, tmp_path: Path) -> None:
    contents = qwen_contents(made("qwen2 yarn")[1])
    contents.keys["qwen2.context_length"] = 32
    (path,) = write(tmp_path / "model.gguf", contents)
    with loaded(path) as llm:
        assert llm.context == 128


@pytest.mark.parametrize("variant", ["qwen3", "qwen3 moe"])
def test_experts_and_head_dim_by_other_names(made: Made, tmp_path: Path, variant: str) -> None:
    """Releases say num_experts, transformers writes num_local_experts; without head_dim the two Qwen3 differ."""
    directory, model = made(variant)
    config = json.loads((directory / "config.json").read_text())
    experts = config.get("num_local_experts", config.get("num_experts"))
    path = published(directory, tmp_path, num_local_experts=None, num_experts=experts)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


def test_without_head_dim(tmp_path: Path) -> None:
    """Qwen3 then has heads of 128, whatever the number of heads; the others share the width among their heads."""
    model = save_qwen(tmp_path, "qwen3", head_dim=128, num_hidden_layers=1)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "head_dim"}))
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


def test_a_shard_of_its_own_for_every_few_tensors(tmp_path: Path) -> None:
    model = checkpoints.save_checkpoint(tmp_path, qwen_config("qwen2 moe"), max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


@pytest.mark.parametrize("variant", ["qwen2", "qwen3", "qwen2 moe"])
def test_half_precision_is_as_close_as_that_of_transformers(made: Made, variant: str) -> None:
    path, model = made(variant)
    ids = sample_ids(LENGTH)
    exact = checkpoints.logits(model, ids)
    half = type(model).from_pretrained(path, dtype=torch.bfloat16, attn_implementation="eager").eval()
    theirs = (checkpoints.logits(half, ids).float() - exact).square().mean().sqrt()
    ours = (zoo_logits(path, ids, dtype="bfloat16", cache_dtype="bfloat16") - exact).square().mean().sqrt()
    assert 0 < ours < 1.3 * theirs


@pytest.mark.parametrize("variant", ["qwen3", "qwen3 moe"])
def test_fp8_as_qwen_publishes_it(made: Made, tmp_path: Path, variant: str) -> None:
    """The scales of blocks are BF16, those of DeepSeek F32."""
    directory, model = made(variant)
    packed, exact = fp8_tensors(tensors_of(directory), (16, 16))
    for name in [name for name in packed if name.endswith("_scale_inv")]:
        scale, weight = packed[name].bfloat16(), name.removesuffix("_scale_inv")
        packed[name] = scale
        exact[weight] = packed[weight].float() * scale.float().repeat_interleave(16, 0).repeat_interleave(16, 1)
    rewrite(directory, tmp_path / "fp8", packed, **fp8_config((16, 16)))
    rewrite(directory, tmp_path / "plain", exact)
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(with_weights(model, tmp_path / "plain"), ids)
    assert (wanted - checkpoints.logits(model, ids)).abs().max() > 100 * TOLERANCE
    assert_equal(zoo_logits(tmp_path / "fp8", ids), wanted)


# --- One batch is like another ---


@pytest.mark.parametrize("variant", ["qwen2 yarn and window", "qwen3 moe window", "qwen2 moe"])
@pytest.mark.parametrize("size", [1, 33])
def test_a_prompt_in_chunks_equals_the_whole(made: Made, variant: str, size: int) -> None:
    path, model = made(variant)
    ids = sample_ids(LENGTH)
    with loaded(path) as llm:
        steps = [[(ids, start, min(start + size, LENGTH))] for start in range(0, LENGTH, size)]
        assert_equal(run_chunks(llm, steps)[id(ids)], checkpoints.logits(model, ids))


@pytest.mark.parametrize("variant", ["qwen2 window from layer 1", "qwen3", "qwen2 moe"])
def test_a_ragged_batch_equals_each_sequence_alone(made: Made, variant: str) -> None:
    path, model = made(variant)
    a, b, c = sample_ids(70, seed=1), sample_ids(33, seed=2), sample_ids(5, seed=3)
    steps = [[(a, 0, 40), (b, 0, 1)], [(b, 1, 33), (a, 40, 41), (c, 0, 4)], [(c, 4, 5), (a, 41, 70)]]
    with loaded(path) as llm:
        found = run_chunks(llm, steps)
    for ids in (a, b, c):
        assert_equal(found[id(ids)], checkpoints.logits(model, ids))


@pytest.mark.parametrize("variant", ["qwen2 window from layer 1", "qwen3 moe"])
def test_generation_equals_transformers(made: Made, variant: str) -> None:
    path, model = made(variant)
    prompts = [sample_ids(count, seed=count) for count in (1, 20, 65)]
    with loaded(path) as llm:
        found = llm.generate(prompts, SamplingParams(max_tokens=24, temperature=0, ignore_eos=True))
    for prompt, result in zip(prompts, found, strict=True):
        wanted = model.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=1
        )
        assert list(result.token_ids) == wanted[0, len(prompt) :].tolist()


def test_a_sliding_layer_keeps_its_window_only(made: Made) -> None:
    """Of 230 tokens a window of 24 lies in at most 2 blocks of 32; the pool does not grow with the context."""
    path, _ = made("qwen2 window from layer 1")
    with loaded(path) as llm:
        full, sliding = llm._engine.scheduler.managers
        assert (full.window, sliding.window) == (None, 24)
        sequence = Sequence(
            "s", tuple(sample_ids(200)), SamplingParams(temperature=0, ignore_eos=True), frozenset(), 30
        )
        llm._engine.add(sequence)
        while sequence.finish_reason is None:
            llm._engine.step()
            if sequence.finish_reason is None:
                held = len([block for block in sliding.table("s") if block])
                assert held <= 2
                assert len(full.table("s")) == -(-sequence.num_computed_tokens // 32)
        cache = llm._engine.runner.cache
        sizes = [cache[layer].tensors[0].shape[0] for layer in range(3)]
        assert sizes[1] == sizes[2] == 64 * (24 + 64) // 32 + 512 // 32 + 1 < sizes[0]


# --- The rules of model code, and what stays on disk ---


@pytest.mark.parametrize(
    ("variant", "norms", "gates"), [("qwen2", 2, 0), ("qwen3", 4, 0), ("qwen3 moe", 4, 0), ("qwen2 moe", 2, 1)]
)
def test_model_code_keeps_the_rules(
    made: Made, monkeypatch: pytest.MonkeyPatch, variant: str, norms: int, gates: int
) -> None:
    path, _ = made(variant)
    with loaded(path) as llm, torch.inference_mode():
        engine, cache = llm._engine, llm._engine.runner.cache
        sequence = Sequence("r", tuple(sample_ids(9)), SamplingParams(), frozenset(), 1)
        for manager in engine.scheduler.managers:
            manager.grow("r", 9)
        # The reference of `moe` asks which experts were chosen, which a step that is recorded must not.
        for decode in (False,) if "moe" in variant else (False, True):
            chunk = Chunk(sequence, 8, 1) if decode else Chunk(sequence, 0, 8)
            batch = engine.runner.batch([chunk], engine.scheduler.managers)
            with rules(monkeypatch, decode=decode) as ops:
                llm.model.logits(llm.model.hidden(batch, cache))
            assert ops.count("attend") == 3
            assert ops.count("rms_norm") == 3 * norms + 1
            assert ops.count("gate") == 3 * gates
            assert ops.count("route") == ops.count("moe") == (3 if "moe" in variant else 0)


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_experts_stay_views_of_the_file(made: Made, tmp_path: Path, form: str) -> None:
    path, model = made("qwen2 moe wide")
    if form == "gguf":
        contents = qwen_contents(model)
        (path,) = write(tmp_path / "model.gguf", contents, types=packable(contents, "Q4_K", "Q8_0"))
    with loaded(path) as llm:
        source, ranges = llm._source, []
        for info in source.tensors.values():
            start = np.frombuffer(source.read(info.name), np.uint8).ctypes.data
            ranges.append((start, start + info.nbytes))
        tables = [w for m in llm.model.modules() for w in vars(m).values() if isinstance(w, ExpertWeights)]
        assert len(tables) == 2 * 3
        for view in (view for table in tables for view in table.views):
            data = view if isinstance(view, torch.Tensor) else view.parts["data"]
            assert any(low <= data.data_ptr() and data.data_ptr() + data.nbytes <= high for low, high in ranges)


def test_leftovers_of_the_rotary_embedding_are_ignored(made: Made, tmp_path: Path) -> None:
    directory, model = made("qwen2")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).symlink_to(directory / name)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tmp_path / "model.safetensors")
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))
