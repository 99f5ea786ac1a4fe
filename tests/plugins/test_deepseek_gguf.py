"""zoo-deepseek on GGUF files in all their layouts, against transformers and llama.cpp."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from oracle import checkpoints
from oracle.checkpoints import sample_ids
from oracle.deepseek_gguf import LAYOUTS, deepseek_contents, fuse_gate_up, logits_of, packable
from oracle.gguf_writer import Contents, fill_with_blocks, rounded, write
from oracle.llamacpp import LlamaCpp
from plugins.deepseek_tools import LENGTH, TOLERANCE, Made, assert_equal, loaded, maker, zoo_logits
from zoo.cli.main import cli
from zoo.errors import ContextLengthError, PluginError
from zoo.quant.tensor import QuantTensor


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return maker(tmp_path_factory)


def llamacpp_logits(path: Path, ids: list[int]) -> Tensor:
    with LlamaCpp(path, context=256, threads=1) as model:
        return torch.from_numpy(model.logits(ids))


# --- float32 in every layout ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "variant", ["v2-lite", "v2", "v2.5", "v3", "v3 tied", "v3 without q_lora", "v3 shared 0", "v3 all dense", "v3 eps"]
)
def test_float32_equals_transformers_and_safetensors(made: Made, tmp_path: Path, variant: str, layout: str) -> None:
    directory, model = made(variant)
    (path,) = write(tmp_path / "model.gguf", deepseek_contents(model, layout))
    ids = sample_ids(LENGTH)
    with loaded(path) as llm:
        assert len(llm.notes) == 1, "nothing is assumed where all keys are there"
        found = llm.logits(ids)
    assert_equal(found, checkpoints.logits(model, ids))
    assert_equal(found, zoo_logits(directory, ids))


@pytest.mark.parametrize("layout", ["split", "both"])
def test_stacks_may_be_written_as_matrices(made: Made, tmp_path: Path, layout: str) -> None:
    _, model = made("v3")
    contents = deepseek_contents(model, layout, matrices=True)
    assert contents.tensors["blk.0.attn_k_b.weight"].shape == (4 * 32, 16)
    (path,) = write(tmp_path / "model.gguf", contents)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


@pytest.mark.parametrize("layout", ["fused", "split"])
@pytest.mark.parametrize("variant", ["v2-lite of 27", "v2 ungrouped", "v3", "v3 of 256"])
def test_float32_equals_llamacpp(made: Made, tmp_path: Path, variant: str, layout: str) -> None:
    """V2 without groups: llama.cpp forms them by V3's rule, and takes a model for V2-Lite by its 27 layers."""
    (path,) = write(tmp_path / "model.gguf", deepseek_contents(made(variant)[1], layout))
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), llamacpp_logits(path, ids))


def test_the_layout_does_not_change_what_is_cached(made: Made, tmp_path: Path) -> None:
    _, model = made("v3")
    sizes = set()
    for layout in LAYOUTS:
        (path,) = write(tmp_path / f"{layout}.gguf", deepseek_contents(model, layout))
        with loaded(path) as llm:
            sizes.add(tuple(llm.model.cache_spec()))
    assert len(sizes) == 1


# --- Packed ---

# What each type falls back to where rows are no multiple of 256, as llama.cpp's quantiser chooses.
NARROW = {
    "Q8_0": "Q8_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "IQ4_XS": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
}  # fmt: skip
SMALL = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S")


def pack(contents: Contents, kind: str) -> dict[str, str]:
    """Types of a file of one kind; the smallest types get random blocks."""
    types = packable(contents, kind, NARROW.get(kind, "IQ4_NL"))
    assert types["blk.1.ffn_gate_exps.weight"] == kind
    if kind in SMALL:
        fill_with_blocks(contents, kind, [name for name, chosen in types.items() if chosen == kind])
    return types


@pytest.mark.parametrize("kind", [*NARROW, *SMALL])
@pytest.mark.usefixtures("reference_kernels")
def test_packed_equals_the_unpacked_weights(made: Made, tmp_path: Path, kind: str) -> None:
    contents = deepseek_contents(made("wide")[1])
    types = pack(contents, kind)
    (path,) = write(tmp_path / "packed.gguf", contents, types=types)
    ids = sample_ids(LENGTH)
    wanted = logits_of(rounded(contents, types), copy.deepcopy(made("wide")[1]), ids)
    with loaded(path) as llm:
        assert_equal(llm.logits(ids), wanted)
        assert_equal(llm.model.logits(llm._engine.hidden(tuple(ids[:8]), 1)), wanted[:8])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
@pytest.mark.usefixtures("reference_kernels")
def test_packed_kv_b_equals_the_unpacked_weights(made: Made, tmp_path: Path, kind: str) -> None:
    """The layout of files up to April 2025, where keys and values share a matrix that is cut head by head."""
    contents = deepseek_contents(made("wide")[1], "fused")
    types = packable(contents, kind, NARROW[kind])
    assert types["blk.0.attn_kv_b.weight"] == kind
    (path,) = write(tmp_path / "packed.gguf", contents, types=types)
    (exact,) = write(tmp_path / "dense.gguf", rounded(contents, types))
    ids = sample_ids(LENGTH)
    with loaded(path) as llm:
        wanted = zoo_logits(exact, ids)
        assert_equal(llm.logits(ids), wanted)
        assert_equal(llm.model.logits(llm._engine.hidden(tuple(ids[:8]), 1)), wanted[:8])
    assert (llamacpp_logits(exact, ids) - wanted).abs().max() < 2 * TOLERANCE, "both round 2 layers of 256"


@pytest.mark.parametrize("kind", ["Q8_0", "IQ2_XXS"])
@pytest.mark.usefixtures("reference_kernels")
def test_a_packed_kv_b_beside_its_halves_is_not_read(made: Made, tmp_path: Path, kind: str) -> None:
    contents = deepseek_contents(made("wide")[1], "both")
    types = pack(contents, kind)
    split = rounded(contents, types)
    for name in [name for name in contents.tensors if "attn_kv_b" in name]:
        contents.tensors[name] = np.zeros_like(contents.tensors[name])
        contents.blocks.pop(name, None)
        types[name] = "Q8_0"
        del split.tensors[name]
    (path,) = write(tmp_path / "packed.gguf", contents, types=types)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), logits_of(split, copy.deepcopy(made("wide")[1]), ids))


@pytest.mark.usefixtures("reference_kernels")
def test_a_mix_of_types_as_r1_is_published(made: Made, tmp_path: Path) -> None:
    """IQ1_S experts with Q6_K down-projections, Q4_K attention, Q6_K head: types differ within a layer."""
    contents = deepseek_contents(made("wide")[1])
    types = packable(contents, "Q4_K", "Q8_0")
    types |= {name: "Q6_K" for name in types if "down" in name or name == "output.weight"}
    fill_with_blocks(contents, "IQ1_S", [name for name in types if "gate_exps" in name or "up_exps" in name])
    (path,) = write(tmp_path / "mixed.gguf", contents, types=types)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), logits_of(rounded(contents, types), copy.deepcopy(made("wide")[1]), ids))


@pytest.mark.parametrize("kind", ["F32", "Q4_K", "Q8_0"])
def test_gate_and_up_of_experts_in_one_tensor(made: Made, tmp_path: Path, kind: str) -> None:
    contents = deepseek_contents(made("wide")[1])
    (apart,) = write(tmp_path / "apart.gguf", contents, types=packable(contents, kind, "Q8_0"))
    fuse_gate_up(contents)
    assert not any("ffn_up_exps" in name for name in contents.tensors)
    (fused,) = write(tmp_path / "fused.gguf", contents, types=packable(contents, kind, "Q8_0"))
    ids = sample_ids(LENGTH)
    with loaded(fused) as llm:
        assert torch.equal(llm.logits(ids), zoo_logits(apart, ids))
        if kind != "F32":
            experts = llm.model.get_submodule("model.layers.1.mlp.experts")
            assert all(isinstance(view, QuantTensor) for view in experts.up_proj.views)  # type: ignore[union-attr]


def test_split_files_open_by_any_shard(made: Made, tmp_path: Path) -> None:
    _, model = made("v3")
    contents = deepseek_contents(model)
    files = write(tmp_path / "model.gguf", contents, split_max_tensors=-(-len(contents.tensors) // 3))
    assert len(files) == 3
    ids = sample_ids(LENGTH)
    for file in files:
        assert_equal(zoo_logits(file, ids), checkpoints.logits(model, ids))


# --- Early files ---

_EARLY = (
    "attention.q_lora_rank", "attention.kv_lora_rank", "expert_shared_count", "expert_weights_scale",
    "expert_feed_forward_length", "leading_dense_block_count", "rope.scaling.yarn_log_multiplier",
    "expert_weights_norm", "expert_gating_func", "expert_group_count", "expert_group_used_count", "vocab_size",
)  # fmt: skip


def early(model: Any, *keys: str) -> Contents:
    """A file from before these keys (all of the first months by default)."""
    contents = deepseek_contents(model, "fused")
    for key in keys or _EARLY:
        contents.keys.pop(f"deepseek2.{key}", None)
    return contents


@pytest.mark.parametrize(
    ("variant", "assumed"),
    [
        (
            "v2 of 160",
            {"expert_weights_scale": "16.0", "expert_group_count": "8", "expert_group_used_count": "3",
             "yarn_log_multiplier": "0.0707"},
        ),
        ("v2-lite", {"yarn_log_multiplier": "0.0707"}),
        ("v2-lite unscaled", {}),
        (
            "v3 of 256",
            {"expert_weights_scale": "2.5", "expert_group_count": "8", "expert_group_used_count": "4",
             "expert_weights_norm": "True", "yarn_log_multiplier": "0.1"},
        ),
    ],
)  # fmt: skip
def test_early_files_get_what_their_release_has(
    made: Made, tmp_path: Path, variant: str, assumed: dict[str, str]
) -> None:
    _, model = made(variant)
    (path,) = write(tmp_path / "early.gguf", early(model))
    ids = sample_ids(LENGTH)
    with loaded(path) as llm:
        assert_equal(llm.logits(ids), checkpoints.logits(model, ids))
        missing = [note for note in llm.notes if "missing" in note]
    assert len(missing) == len(assumed)
    for key, value in assumed.items():
        (note,) = [note for note in missing if f"{key} is missing" in note]
        assert f"{value} is assumed" in note
        assert "--set" in note


def test_what_is_assumed_can_be_set(made: Made, tmp_path: Path) -> None:
    """A file of a model that is none of the releases: nothing fits by itself, and four keys make it right."""
    _, model = made("v2")  # 32 experts
    (path,) = write(tmp_path / "early.gguf", early(model))
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(model, ids)
    assert (zoo_logits(path, ids) - wanted).abs().max() > 0.1
    known = {".expert_weights_scale": 4.0, ".expert_group_count": 8, ".expert_group_used_count": 3}
    with loaded(path, overrides={**known, ".rope.scaling.yarn_log_multiplier": 0.0707}) as llm:
        assert_equal(llm.logits(ids), wanted)
        assert not any("missing" in note for note in llm.notes)


def test_inspect_and_run_print_what_is_assumed(made: Made, tmp_path: Path) -> None:
    (path,) = write(tmp_path / "early.gguf", early(made("v2-lite")[1]))
    shown = CliRunner().invoke(cli, ["inspect", "--model-path", str(path)])
    assert "deepseek2.rope.scaling.yarn_log_multiplier is missing" in shown.stdout
    said = CliRunner().invoke(cli, ["run", "--model-path", str(path), "--raw", "--max-tokens", "1", "the"])
    assert said.exit_code == 0
    assert "zoo: deepseek2.rope.scaling.yarn_log_multiplier is missing" in said.stderr
    assert "missing" not in said.stdout


def test_float16_comes_with_a_warning(made: Made) -> None:
    path, _ = made("v3")
    for dtype in ("float16", "bfloat16", "float32"):
        with loaded(path, dtype=dtype) as llm:
            assert any("float16 overflows" in note for note in llm.notes) == (dtype == "float16")


# --- What is not part of the model ---


def add_mtp(contents: Contents, layer: int) -> None:
    """A further layer for multi-token prediction, which the number of layers counts too."""
    prefix = f"{contents.architecture}."
    contents.keys[f"{prefix}block_count"] += 1
    contents.keys[f"{prefix}nextn_predict_layers"] = 1
    last = f"blk.{layer - 1}."
    copied = {name.replace(last, f"blk.{layer}."): t for name, t in contents.tensors.items() if name.startswith(last)}
    for name in ("eh_proj", "enorm", "hnorm", "embed_tokens", "shared_head_norm", "shared_head_head"):
        copied[f"blk.{layer}.nextn.{name}.weight"] = np.ones((4, 4), np.float32)
    contents.tensors |= {name: np.full_like(tensor, np.nan) for name, tensor in copied.items()}


@pytest.mark.parametrize(("variant", "architecture"), [("v3", "deepseek2"), ("v3.2", "deepseek32")])
def test_the_layer_of_multi_token_prediction_is_ignored(
    made: Made, tmp_path: Path, variant: str, architecture: str
) -> None:
    _, model = made(variant)
    contents = deepseek_contents(model, architecture=architecture)
    contents.keys[f"{architecture}.attention.indexer.top_k"] = 128
    add_mtp(contents, 4)
    (path,) = write(tmp_path / "model.gguf", contents)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


def test_v32_is_dense_up_to_its_choice(made: Made, tmp_path: Path) -> None:
    contents = deepseek_contents(made("v3.2")[1], architecture="deepseek32")
    contents.keys["deepseek32.context_length"] = 163840
    (path,) = write(tmp_path / "model.gguf", contents)
    with loaded(path) as llm:
        assert llm.context == 2048
        assert any("sparse attention" in note for note in llm.notes)
    with pytest.raises(ContextLengthError, match="sparse attention"):
        loaded(path, context=2049).__enter__()


def test_v4_is_refused_with_the_reason(made: Made, tmp_path: Path) -> None:
    (path,) = write(tmp_path / "model.gguf", deepseek_contents(made("v3")[1], architecture="deepseek4"))
    with pytest.raises(PluginError, match="hybrid attention"):
        loaded(path).__enter__()


@pytest.mark.parametrize(("architecture", "distribution"), [("llama", "zoo-llama"), ("qwen2", "zoo-qwen")])
def test_distilled_models_name_the_distribution_they_need(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, distribution: str
) -> None:
    contents = deepseek_contents(made("v3")[1], architecture=architecture)
    (path,) = write(tmp_path / "DeepSeek-R1-Distill.gguf", contents)
    monkeypatch.setenv("ZOO_PLUGINS", "deepseek")
    with pytest.raises(PluginError) as caught:
        loaded(path).__enter__()
    assert distribution in str(caught.value)


# --- Loading ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["F32", "Q4_K"])
def test_weights_stay_views_of_the_file(
    made: Made, tmp_path: Path, kind: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CPU_REPACK", "off")
    contents = deepseek_contents(made("wide")[1], layout)
    fuse_gate_up(contents)
    (path,) = write(tmp_path / "model.gguf", contents, types=packable(contents, kind, "Q8_0"))
    with loaded(path) as llm:
        ranges = []
        for info in llm._source.tensors.values():
            start = np.frombuffer(llm._source.read(info.name), np.uint8).ctypes.data
            ranges.append((start, start + info.nbytes))
        inside = within(ranges)
        parts = list(weight_parts(llm.model))
        assert len(parts) > 30
        for part in parts:
            assert inside(part), "a weight was copied"


def weight_parts(model: Any) -> list[Tensor]:
    """Every tensor that a model holds weights in, those of packed ones and of experts included."""
    found: list[Tensor] = []
    for module in model.modules():
        values = [*module._parameters.values(), *vars(module).values()]
        for value in values:
            for weight in getattr(value, "views", (value,)):
                if isinstance(weight, QuantTensor):
                    found += weight.parts.values()
                elif isinstance(weight, Tensor):
                    found.append(weight)
    return found


def within(ranges: list[tuple[int, int]]) -> Callable[[Tensor], bool]:
    def inside(tensor: Tensor) -> bool:
        start = tensor.data_ptr()
        size = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        end = start + size * tensor.element_size()
        return any(low <= start and end <= high for low, high in ranges)

    return inside
