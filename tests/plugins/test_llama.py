"""zoo-llama against transformers and llama.cpp, on tiny random checkpoints in both formats."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from oracle import checkpoints, gguf_writer
from oracle.checkpoints import llama_config, sample_ids, save_checkpoint
from oracle.gguf_writer import Contents, fuse_qkv, llama_contents, rounded, write
from plugins.parity import TOLERANCE, assert_equal, llamacpp_logits, loaded, run_chunks, zoo_logits
from plugins.rules import RuleBroken, rules
from zoo import LLM, SamplingParams
from zoo.engine.scheduler import Chunk
from zoo.engine.sequence import Sequence
from zoo.errors import ConfigError, PluginError, WeightError, ZooError
from zoo.nn import Linear
from zoo.quant.tensor import QuantTensor
from zoo.weights.names import Rows

LENGTH = 100  # past the original contexts below, which are 32

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "multi-head": {"num_key_value_heads": 4},
    "one kv head": {"num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3": {"rope_parameters": LLAMA3},
    "linear": {"rope_parameters": LINEAR},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "wide heads": {"head_dim": 32},
    "narrow heads": {"head_dim": 8},
    "eps": {"rms_norm_eps": 0.1},
}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, PreTrainedModel]]:
    """Checkpoints by variant, each written once."""
    known: dict[str, tuple[Path, PreTrainedModel]] = {}

    def make(variant: str) -> tuple[Path, PreTrainedModel]:
        if variant not in known:
            path = tmp_path_factory.mktemp(variant.replace(" ", "-"))
            changes = WIDE if variant == "wide" else VARIANTS[variant]
            known[variant] = path, save_checkpoint(path, llama_config(**changes))
        return known[variant]

    return make


Made = Callable[[str], tuple[Path, PreTrainedModel]]


# --- Parity ---


@pytest.mark.parametrize("variant", VARIANTS)
def test_safetensors_logits_equal_transformers(made: Made, variant: str) -> None:
    path, model = made(variant)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gguf_logits_equal_llamacpp_and_transformers(made: Made, variant: str, tmp_path: Path) -> None:
    _, model = made(variant)
    (path,) = write(tmp_path / "model.gguf", llama_contents(model))
    ids = sample_ids(LENGTH)
    found = zoo_logits(path, ids)
    assert_equal(found, llamacpp_logits(path, ids))
    assert_equal(found, checkpoints.logits(model, ids))


def test_both_formats_give_the_same_to_rounding(made: Made, tmp_path: Path) -> None:
    directory, model = made("llama3")
    (path,) = write(tmp_path / "model.gguf", llama_contents(model))
    ids = sample_ids(LENGTH, seed=1)
    assert (zoo_logits(path, ids) - zoo_logits(directory, ids)).abs().max() < TOLERANCE


def test_sharded_safetensors(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path, llama_config(), max_shard_size="350KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) == 2
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


@pytest.mark.parametrize("shard", [0, 1])
def test_split_gguf_opens_by_any_shard(made: Made, tmp_path: Path, shard: int) -> None:
    contents = llama_contents(made("grouped")[1])
    files = write(tmp_path / "model.gguf", contents, split_max_tensors=-(-len(contents.tensors) // 2))
    assert len(files) == 2
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(files[shard], ids), llamacpp_logits(files[0], ids))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
@pytest.mark.usefixtures("reference_kernels")
def test_quantised_gguf_equals_its_rounded_weights_in_float32(made: Made, tmp_path: Path, kind: str) -> None:
    contents = llama_contents(made("wide")[1])
    (path,) = write(tmp_path / "packed.gguf", contents, types=kind)
    (dense,) = write(tmp_path / "dense.gguf", rounded(contents, kind))
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), llamacpp_logits(dense, ids))


@pytest.mark.usefixtures("reference_kernels")
def test_types_may_differ_within_a_layer(made: Made, tmp_path: Path) -> None:
    contents = llama_contents(made("wide")[1])
    kinds = ["Q4_K", "Q6_K", "Q8_0", "F32", "Q5_0"]
    types = {name: kinds[i % len(kinds)] for i, name in enumerate(contents.tensors)}
    (path,) = write(tmp_path / "mixed.gguf", contents, types=types)
    (dense,) = write(tmp_path / "dense.gguf", rounded(contents, types))
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), llamacpp_logits(dense, ids))


@pytest.mark.parametrize(("variant", "types"), [("biases", "F32"), ("wide", "Q4_K")])
def test_fused_qkv_equals_split(made: Made, tmp_path: Path, variant: str, types: str) -> None:
    contents = llama_contents(made(variant)[1])
    (split,) = write(tmp_path / "split.gguf", contents, types=types)
    fuse_qkv(contents)
    assert "blk.0.attn_qkv.weight" in contents.tensors
    assert "blk.0.attn_q.weight" not in contents.tensors
    (fused,) = write(tmp_path / "fused.gguf", contents, types=types)
    ids = sample_ids(LENGTH)
    assert torch.equal(zoo_logits(fused, ids), zoo_logits(split, ids))


def test_old_files_without_optional_keys(made: Made, tmp_path: Path) -> None:
    """Files of 2023 have neither key_length nor head_count_kv, and may carry leftovers of the rotary embedding."""
    contents = llama_contents(made("multi-head")[1])
    for key in ("attention.key_length", "attention.value_length", "attention.head_count_kv", "vocab_size"):
        del contents.keys[f"llama.{key}"]
    contents.tensors["blk.0.attn_rot_embd.weight"] = np.ones(8, np.float32)
    (path,) = write(tmp_path / "old.gguf", contents)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(made("multi-head")[1], ids))


def test_sizes_may_be_given_once_per_layer(made: Made, tmp_path: Path) -> None:
    contents = llama_contents(made("grouped")[1])
    for key, value in {"attention.head_count": 4, "attention.head_count_kv": 2, "feed_forward_length": 96}.items():
        assert contents.keys[f"llama.{key}"] == value
        contents.keys[f"llama.{key}"] = [value] * 3
    (path,) = write(tmp_path / "arrays.gguf", contents)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), llamacpp_logits(path, ids))


def test_leftover_inv_freq_and_the_older_config_spelling(made: Made, tmp_path: Path) -> None:
    directory, model = made("llama3")
    config = json.loads((directory / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
    config["head_dim"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tmp_path / "model.safetensors")
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


def test_scaling_that_is_added_by_hand_counts(made: Made, tmp_path: Path) -> None:
    """Model pages say to add `rope_scaling` to config.json; since transformers 5 it stands beside `rope_parameters`."""
    directory, model = made("linear")
    config = json.loads((directory / "config.json").read_text())
    plain = {"rope_type": "default", "rope_theta": LINEAR["rope_theta"]}
    by_hand = {"type": "linear", "factor": LINEAR["factor"]}
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(directory / name)
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(model, ids)
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_parameters": plain}))
    assert (zoo_logits(tmp_path, ids) - wanted).abs().max() > 100 * TOLERANCE
    assert_equal(zoo_logits(tmp_path, ids, overrides={"rope_scaling": by_hand}), wanted)
    added = {**config, "rope_parameters": plain, "rope_scaling": by_hand, "rope_theta": LINEAR["rope_theta"]}
    (tmp_path / "config.json").write_text(json.dumps(added))
    assert_equal(zoo_logits(tmp_path, ids), wanted)
    theirs = type(model).from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    assert_equal(checkpoints.logits(theirs, ids), wanted)


def test_a_tied_checkpoint_may_hold_its_head_a_second_time(made: Made, tmp_path: Path) -> None:
    directory, model = made("tied")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_as_close_as_that_of_transformers(made: Made, dtype: str) -> None:
    path, model = made("grouped")
    ids = sample_ids(LENGTH)
    exact = checkpoints.logits(model, ids)
    half = type(model).from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="eager")
    theirs = (checkpoints.logits(half, ids).float() - exact).square().mean().sqrt()
    ours = (zoo_logits(path, ids, dtype=dtype, cache_dtype=dtype) - exact).square().mean().sqrt()
    assert 0 < ours < 1.3 * theirs


# --- One batch is like another ---


@pytest.mark.parametrize("variant", ["grouped", "llama3"])
@pytest.mark.parametrize("size", [1, 7, 32, 33])
def test_a_prompt_in_chunks_equals_the_whole(made: Made, variant: str, size: int) -> None:
    path, model = made(variant)
    ids = sample_ids(LENGTH)
    with loaded(path) as llm:
        steps = [[(ids, start, min(start + size, LENGTH))] for start in range(0, LENGTH, size)]
        found = run_chunks(llm, steps)[id(ids)]
        assert_equal(found, checkpoints.logits(model, ids))
        assert (found - llm.logits(ids)).abs().max() < TOLERANCE


def test_a_ragged_batch_equals_each_sequence_alone(made: Made) -> None:
    """Prefill, chunk and decode of different sequences in the same step, their blocks interleaved."""
    path, model = made("grouped")
    a, b, c = sample_ids(70, seed=1), sample_ids(33, seed=2), sample_ids(5, seed=3)
    steps = [
        [(a, 0, 40), (b, 0, 1)],
        [(b, 1, 33), (a, 40, 41), (c, 0, 4)],
        [(c, 4, 5), (a, 41, 70)],
    ]
    with loaded(path) as llm:
        found = run_chunks(llm, steps)
    for ids in (a, b, c):
        assert_equal(found[id(ids)], checkpoints.logits(model, ids))


def test_generate_of_a_list_equals_one_by_one(made: Made) -> None:
    path, model = made("grouped")
    prompts = [sample_ids(count, seed=count) for count in (1, 3, 40, 65, 2)]
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    with loaded(path) as llm:
        together = [result.token_ids for result in llm.generate(prompts, params)]
        alone = [llm.generate(prompt, params).token_ids for prompt in prompts]
    assert together == alone
    for prompt, found in zip(prompts, together, strict=True):
        wanted = model.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=1
        )
        assert list(found) == wanted[0, len(prompt) :].tolist()


def test_nothing_of_one_sequence_is_left_for_the_next(made: Made) -> None:
    path, _ = made("grouped")
    ids = sample_ids(50)
    with loaded(path) as llm:
        before = llm.logits(ids)
        llm.logits(sample_ids(90, seed=9))
        llm.reset()
        assert torch.equal(llm.logits(ids), before)


def test_hidden_states_equal_transformers(made: Made) -> None:
    path, model = made("biases")
    ids = sample_ids(40)
    with torch.no_grad():
        wanted = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    with loaded(path) as llm:
        found = llm.hidden_states(ids, layers=[3, 0, 1, 2])
    for state, layer in zip(found, [3, 0, 1, 2], strict=True):
        assert state.shape == (40, 64)
        assert (state - wanted[layer][0]).abs().max() < TOLERANCE


def test_score_equals_transformers(made: Made) -> None:
    path, model = made("grouped")
    text = "the theory of other words 12345"
    with loaded(path) as llm:
        ids, found = llm.tokenizer.encode(text), llm.score(text)
    logprobs = checkpoints.logits(model, ids).log_softmax(-1)
    wanted = [float(logprobs[i, token]) for i, token in enumerate(ids[1:])]
    assert found == pytest.approx(wanted, abs=TOLERANCE)


# --- The rules of model code ---


@pytest.mark.parametrize("packing", ["F32", "Q4_K"])
def test_model_code_keeps_the_rules(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str) -> None:
    (path,) = write(tmp_path / "model.gguf", llama_contents(made("wide")[1]), types=packing)
    a, b = sample_ids(10, seed=1), sample_ids(4, seed=2)
    with loaded(path) as llm, torch.inference_mode():
        engine, cache = llm._engine, llm._engine.runner.cache
        sequences = [Sequence(str(i), tuple(ids), SamplingParams(), frozenset(), 1) for i, ids in enumerate((a, b))]
        for manager in engine.scheduler.managers:
            for sequence in sequences:
                manager.grow(sequence.request_id, sequence.num_tokens)
        for decode in (False, True):
            bounds = [(s.num_tokens - 1, 1) if decode else (0, s.num_tokens - 1) for s in sequences]
            chunks = [Chunk(s, start, length) for s, (start, length) in zip(sequences, bounds, strict=True)]
            batch = engine.runner.batch(chunks, engine.scheduler.managers)
            with rules(monkeypatch, decode=decode) as ops:
                llm.model.logits(llm.model.hidden(batch, cache))
            assert ops.count("attend") == 2
            assert ops.count("glu") == 2
            assert ops.count("linear") == 2 * 3 + 1  # projections of q, k, v; of the output; down; and the head


@pytest.mark.parametrize(
    ("decode", "breach"),
    [
        (False, lambda x: x.sum().item()),
        (False, lambda x: x.tolist()),
        (False, lambda x: bool((x > 0).any())),
        (False, lambda x: x[x > 0]),
        (False, lambda x: x.nonzero()),
        (False, lambda x: torch.where(x > 0)),
        (False, lambda x: x.numpy()),
        (False, lambda x: int(x[0, 0])),
        (False, lambda x: x.masked_select(x > 0)),
        (True, lambda x: x + 1),
        (True, lambda x: torch.cat([x, x])),
        (True, lambda x: x.softmax(-1)),
    ],
)
def test_a_breach_of_the_rules_is_noticed(
    made: Made, monkeypatch: pytest.MonkeyPatch, decode: bool, breach: Callable[[Tensor], Any]
) -> None:
    forward = Linear.forward

    def broken(self: Linear, x: Tensor) -> Tensor:
        breach(x)
        return forward(self, x)

    path, _ = made("grouped")
    with loaded(path) as llm, torch.inference_mode():
        layer = llm.model.get_submodule("model.layers.0.self_attn.o_proj")
        x = torch.ones(2, 64)
        with rules(monkeypatch, decode=decode):
            layer(x)
        monkeypatch.setattr(Linear, "forward", broken)
        with rules(monkeypatch, decode=decode), pytest.raises(RuleBroken):
            layer(x)


# --- Loading ---


@pytest.mark.parametrize("fused", [False, True])
def test_packed_weights_stay_views_of_the_file(
    made: Made, tmp_path: Path, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CPU_REPACK", "off")
    contents = llama_contents(made("wide")[1])
    names = set(contents.tensors)
    if fused:
        fuse_qkv(contents)
    (path,) = write(tmp_path / "model.gguf", contents, types="Q4_K")
    with loaded(path) as llm:
        source = llm._source
        ranges = []
        for info in source.tensors.values():
            start = np.frombuffer(source.read(info.name), np.uint8).ctypes.data
            ranges.append((start, start + info.nbytes))
        weights = [w for m in llm.model.modules() for w in vars(m).values() if isinstance(w, QuantTensor)]
        assert len(weights) == len([name for name in names if "norm" not in name])
        for weight in weights:
            data = weight.parts["data"]
            assert any(low <= data.data_ptr() and data.data_ptr() + data.nbytes <= high for low, high in ranges)
        assert all(parameter.ndim == 1 for parameter in llm.model.parameters())
        assert not any(parameter.is_meta for parameter in llm.model.parameters())


def test_dense_weights_stay_views_of_the_file(made: Made) -> None:
    path, _ = made("grouped")
    with loaded(path) as llm:
        starts = {
            np.frombuffer(llm._source.read(name), np.uint8).ctypes.data: info.nbytes
            for name, info in llm._source.tensors.items()
        }
        for name, parameter in llm.model.named_parameters():
            assert starts[parameter.data_ptr()] == parameter.nbytes, name


def test_two_models_live_side_by_side(made: Made) -> None:
    (first, a), (second, b) = made("grouped"), made("llama3")
    ids = sample_ids(50)
    with loaded(first) as one, loaded(second) as two:
        assert_equal(one.logits(ids), checkpoints.logits(a, ids))
        assert_equal(two.logits(ids), checkpoints.logits(b, ids))
        assert_equal(one.logits(ids), checkpoints.logits(a, ids))


def test_a_boastful_context_length_costs_no_memory(made: Made, tmp_path: Path) -> None:
    contents = llama_contents(made("grouped")[1])
    contents.keys["llama.context_length"] = 2**32 - 1
    (path,) = write(tmp_path / "model.gguf", contents)
    with loaded(made("grouped")[0]) as llm:
        llm.logits([5])
    process = psutil.Process()
    before = process.memory_info().rss
    with loaded(path) as llm:
        assert 256 < llm.context < 2**20
        llm.logits([5, 6, 7])
        assert process.memory_info().rss - before < 64 << 20


# --- Wrong files ---

Edit = Callable[[Contents], None]


def set_key(key: str, value: Any) -> Edit:
    return lambda contents: contents.keys.update({key: value})


def drop_key(key: str) -> Edit:
    return lambda contents: contents.keys.pop(key)


def drop_tensor(name: str) -> Edit:
    return lambda contents: contents.tensors.pop(name)


def set_tensor(name: str, *shape: int) -> Edit:
    return lambda contents: contents.tensors.update({name: np.ones(shape, np.float32)})


def both(*edits: Edit) -> Edit:
    return lambda contents: [edit(contents) for edit in edits]


_SCALING = "llama.rope.scaling"

GGUF_ERRORS: dict[str, tuple[Edit, type[ZooError], str]] = {
    "missing tensor": (drop_tensor("blk.1.ffn_down.weight"), WeightError, r"layers\.1\.mlp\.down_proj\.weight"),
    "missing norm": (drop_tensor("output_norm.weight"), WeightError, r"model\.norm\.weight"),
    "missing embedding": (drop_tensor("token_embd.weight"), ConfigError, r"token_embd\.weight"),
    "extra tensor": (set_tensor("blk.0.attn_sinks.weight", 4), WeightError, r"blk\.0\.attn_sinks\.weight"),
    "extra layer": (set_tensor("blk.7.ffn_up.weight", 96, 64), WeightError, r"blk\.7\.ffn_up\.weight"),
    "extra bias": (set_tensor("blk.1.attn_q.bias", 64), WeightError, r"blk\.1\.attn_q\.bias"),
    "missing bias": (set_tensor("blk.0.attn_q.bias", 64), WeightError, r"self_attn\.k_proj\.bias"),
    "transposed": (set_tensor("blk.2.ffn_up.weight", 64, 96), WeightError, r"blk\.2\.ffn_up\.weight.*\[64, 96\]"),
    "wrong rank": (set_tensor("blk.0.attn_norm.weight", 1, 64), WeightError, r"blk\.0\.attn_norm\.weight.*\[1, 64\]"),
    "fused and split": (
        set_tensor("blk.0.attn_qkv.weight", 128, 64), WeightError, r"blk\.0\.attn_qkv\.weight.* and "
    ),
    "fused of a wrong size": (
        lambda contents: (fuse_qkv(contents), set_tensor("blk.0.attn_qkv.weight", 130, 64)(contents)),
        WeightError, r"blk\.0\.attn_qkv\.weight.*\[130, 64\]",
    ),
    "rope_freqs of a wrong size": (set_tensor("rope_freqs.weight", 4), ConfigError, r"rope_freqs\.weight.*\[4\]"),
    "rope type": (set_key(f"{_SCALING}.type", "spiral"), ConfigError, "spiral"),
    "longrope": (set_key(f"{_SCALING}.type", "longrope"), ConfigError, "no tensor rope_factors_long"),
    "factor -1": (
        both(set_key(f"{_SCALING}.type", "linear"), set_key(f"{_SCALING}.factor", -1.0)),
        ConfigError, r"rope\.scaling\.factor",
    ),
    "yarn factor 0": (
        both(set_key(f"{_SCALING}.type", "yarn"), set_key(f"{_SCALING}.factor", 0.0)),
        ConfigError, r"rope\.scaling\.factor",
    ),
    "factor NaN": (
        both(set_key(f"{_SCALING}.type", "linear"), set_key(f"{_SCALING}.factor", float("nan"))),
        ConfigError, r"rope\.scaling\.factor",
    ),
    "factor missing": (set_key(f"{_SCALING}.type", "yarn"), ConfigError, r"rope\.scaling\.factor"),
    "freq_base 0": (set_key("llama.rope.freq_base", 0.0), ConfigError, r"rope\.freq_base"),
    "partial rotation": (set_key("llama.rope.dimension_count", 8), ConfigError, r"rope\.dimension_count"),
    "block_count 0": (set_key("llama.block_count", 0), ConfigError, r"llama\.block_count is 0"),
    "block_count 10^9": (set_key("llama.block_count", 10**9), ConfigError, r"llama\.block_count is 1000000000"),
    "block_count text": (set_key("llama.block_count", "3"), ConfigError, r"llama\.block_count is '3'"),
    "block_count short": (set_key("llama.block_count", 2), WeightError, r"blk\.2\."),
    "block_count long": (set_key("llama.block_count", 4), WeightError, r"layers\.3\."),
    "block_count absent": (drop_key("llama.block_count"), ConfigError, r"llama\.block_count is missing"),
    "head_count 0": (set_key("llama.attention.head_count", 0), ConfigError, r"llama\.attention\.head_count is 0"),
    "head_count_kv 0": (set_key("llama.attention.head_count_kv", 0), ConfigError, r"attention\.head_count_kv is 0"),
    "head_count_kv 3": (set_key("llama.attention.head_count_kv", 3), ConfigError, r"attention\.head_count_kv is 3"),
    "head_count_kv per layer": (
        set_key("llama.attention.head_count_kv", [2, 1, 2]), ConfigError, r"head_count_kv is GGUFArray"
    ),
    "head_count_kv of fewer layers": (
        set_key("llama.attention.head_count_kv", [2, 2]), ConfigError, r"head_count_kv is GGUFArray\(\w+, 2 elements\)"
    ),
    "head_count_kv 2.0": (set_key("llama.attention.head_count_kv", 2.0), ConfigError, r"head_count_kv is 2\.0"),
    "feed_forward_length per layer": (
        set_key("llama.feed_forward_length", [96, 96, 64]), ConfigError, r"feed_forward_length is GGUFArray"
    ),
    "head_count_kv 4": (set_key("llama.attention.head_count_kv", 4), WeightError, r"attn_k\.weight"),
    "eps absent": (drop_key("llama.attention.layer_norm_rms_epsilon"), ConfigError, "layer_norm_rms_epsilon"),
    "eps NaN": (set_key("llama.attention.layer_norm_rms_epsilon", float("nan")), ConfigError, "layer_norm_rms_epsilon"),
    "embedding_length": (set_key("llama.embedding_length", 128), WeightError, r"\.weight has shape"),
    "context_length 0": (set_key("llama.context_length", 0), ConfigError, r"llama\.context_length is 0"),
    "experts": (set_key("llama.expert_count", 8), PluginError, "zoo-mistral runs it"),
    "window": (set_key("llama.attention.sliding_window", 20), PluginError, "zoo-mistral runs it"),
}  # fmt: skip


@pytest.mark.parametrize("fault", GGUF_ERRORS)
def test_a_wrong_gguf_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    edit, error, message = GGUF_ERRORS[fault]
    contents = llama_contents(made("grouped")[1])
    edit(contents)
    (path,) = write(tmp_path / "wrong.gguf", contents)
    with pytest.raises(error, match=message) as caught:
        LLM.load(path, device="cpu", plugin="llama")
    assert caught.value.remedy
    if fault not in ("experts", "window"):
        assert "wrong.gguf" in str(caught.value)


def test_a_linear_factor_of_0_is_refused(made: Made, tmp_path: Path) -> None:
    contents = llama_contents(made("linear")[1])
    contents.keys[f"{_SCALING}.factor"] = 0.0
    (path,) = write(tmp_path / "wrong.gguf", contents)
    with pytest.raises(ConfigError, match=r"rope\.scaling\.factor"):
        LLM.load(path, device="cpu")


HF_ERRORS: dict[str, tuple[dict[str, Any], type[ZooError], str]] = {
    "activation": ({"hidden_act": "gelu"}, ConfigError, "hidden_act is 'gelu'"),
    "kv heads 2.0": ({"num_key_value_heads": 2.0}, ConfigError, r"num_key_value_heads is 2\.0"),
    "kv heads text": ({"num_key_value_heads": "2"}, ConfigError, "num_key_value_heads is '2'"),
    "kv heads a list": ({"num_key_value_heads": [2, 2, 2]}, ConfigError, r"num_key_value_heads is \[2, 2, 2\]"),
    "kv heads": ({"num_key_value_heads": 3}, ConfigError, "num_key_value_heads is 3"),
    "heads 0": ({"num_attention_heads": 0}, ConfigError, "num_attention_heads is 0"),
    "layers 0": ({"num_hidden_layers": 0}, ConfigError, "num_hidden_layers is 0"),
    "layers 10^9": ({"num_hidden_layers": 10**9}, ConfigError, "num_hidden_layers is 1000000000"),
    "layers true": ({"num_hidden_layers": True}, ConfigError, "num_hidden_layers is True"),
    "hidden_size text": ({"hidden_size": "64"}, ConfigError, "hidden_size is '64'"),
    "vocab_size": ({"vocab_size": 321}, WeightError, r"(embed_tokens|lm_head)\.weight needs \[321, 64\]"),
    "head_dim": ({"head_dim": 32}, WeightError, r"self_attn\.\w_proj\.weight"),
    "bias declared": ({"attention_bias": True}, WeightError, r"self_attn\.q_proj\.bias"),
    "head declared tied": ({"tie_word_embeddings": "yes"}, ConfigError, "tie_word_embeddings is 'yes'"),
    "rope type": ({"rope_parameters": {**LINEAR, "rope_type": "spiral"}}, ConfigError, "spiral"),
    "dynamic": ({"rope_parameters": {**LINEAR, "rope_type": "dynamic"}}, ConfigError, "dynamic"),
    "factor 0": ({"rope_parameters": {**LINEAR, "factor": 0}}, ConfigError, r"rope_scaling\.factor is 0"),
    "factor NaN": ({"rope_parameters": {**LINEAR, "factor": float("nan")}}, ZooError, r"NaN|rope_scaling\.factor"),
    "factor text": ({"rope_parameters": {**LINEAR, "factor": "4"}}, ConfigError, r"rope_scaling\.factor is '4'"),
    "low_freq_factor": (
        {"rope_parameters": {**LLAMA3, "low_freq_factor": None}}, ConfigError, r"rope_scaling\.low_freq_factor"
    ),
    "rope a list": ({"rope_parameters": [1]}, ConfigError, "rope"),
    "theta 0": ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, ConfigError, "rope_theta is 0"),
    "eos text": ({"eos_token_id": "</s>"}, ConfigError, "eos_token_id is '</s>'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HF_ERRORS)
def test_a_wrong_config_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    changes, error, message = HF_ERRORS[fault]
    directory, _ = made("grouped")
    config = {**json.loads((directory / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(directory / name)
    with pytest.raises(error, match=message) as caught:
        LLM.load(tmp_path, device="cpu")
    assert caught.value.remedy
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), r"lm_head\.weight \[320, 64\]"),
        (lambda t: t.pop("model.layers.2.self_attn.v_proj.weight"), r"layers\.2\.self_attn\.v_proj\.weight"),
        (lambda t: t.update({"model.layers.0.extra.weight": torch.ones(2)}), r"model\.layers\.0\.extra\.weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(63)}), r"model\.norm\.weight has shape \[63\]"),
    ],
)
def test_wrong_safetensors_are_refused(
    made: Made, tmp_path: Path, edit: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    directory, _ = made("grouped")
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).symlink_to(directory / name)
    with pytest.raises(WeightError, match=message) as caught:
        LLM.load(tmp_path, device="cpu")
    assert caught.value.remedy


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_a_weight_of_integers_is_refused(made: Made, tmp_path: Path, dtype: torch.dtype) -> None:
    directory, _ = made("grouped")
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = torch.ones(320, 64, dtype=dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).symlink_to(directory / name)
    with pytest.raises(WeightError, match=r"lm_head\.weight"):
        LLM.load(tmp_path, device="cpu")


def test_the_tables_name_what_exists() -> None:
    from zoo_llama.plugin import plugin
    from zoo_llama.weights import GGUF

    plugin.check()
    target, _ = GGUF.resolve("blk.12.attn_qkv.bias")
    assert isinstance(target, Rows)
    assert re.fullmatch(r"model\.layers\.12\.self_attn\.q_proj\.bias", target.targets[0])


def test_the_independent_writer_shares_nothing_with_the_plugin() -> None:
    assert "zoo_llama" not in Path(gguf_writer.__file__).read_text()
