"""zoo-gemma against transformers and llama.cpp, on tiny random checkpoints in both formats.

llama.cpp takes GELU from a table in float16, which moves logits by some thousandths: transformers is the judge.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma3TextConfig, PreTrainedModel

from oracle import checkpoints, gemma_gguf
from oracle.checkpoints import sample_ids
from oracle.gemma_checkpoints import (
    LARGEST,
    ROPE3,
    SCALARS,
    VARIANTS,
    WINDOW,
    gemma_config,
    save_gemma,
    save_multimodal,
)
from oracle.gemma_gguf import gemma_contents
from oracle.gguf_writer import Contents, fuse_qkv, rounded, write
from oracle.llamacpp import LlamaCpp
from plugins.parity import assert_equal, llamacpp_logits, loaded, zoo_logits
from zoo import LLM, SamplingParams
from zoo.engine.capacity import BLOCK_SIZE
from zoo.errors import ConfigError, PluginError, UsageError, WeightError, ZooError
from zoo.plugin import LoadOptions
from zoo.source import ModelSource
from zoo.weights import loader
from zoo_gemma.config import Gemma2Config, Gemma3Config, GemmaConfig
from zoo_gemma.plugin import plugin

GELU_TABLE = 1e-2
LENGTH = 100
SHORT = 40  # for models of many layers
assert WINDOW < SHORT < LENGTH

Made = Callable[[str], tuple[Path, PreTrainedModel]]
# Gemma 3's keys that late converters write: without them llama.cpp and zoo must know the same defaults.
COMPLETE = {"gemma3 pattern", "gemma3 thetas"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Checkpoints by variant, each written once."""
    known: dict[str, tuple[Path, PreTrainedModel]] = {}

    def make(variant: str) -> tuple[Path, PreTrainedModel]:
        if variant not in known:
            path = tmp_path_factory.mktemp(variant.replace(" ", "-"))
            known[variant] = path, save_gemma(path, variant)
        return known[variant]

    return make


def assert_close(found: Tensor, wanted: Tensor, tolerance: float = GELU_TABLE) -> None:
    assert (found - wanted).abs().max() < tolerance


# --- Parity ---


@pytest.mark.parametrize("variant", [*VARIANTS, *SCALARS, *LARGEST])
def test_safetensors_logits_equal_transformers(made: Made, variant: str) -> None:
    path, model = made(variant)
    ids = sample_ids(SHORT if variant in LARGEST else LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


@pytest.mark.parametrize("variant", [*VARIANTS, *LARGEST])
def test_gguf_logits_equal_transformers_and_llamacpp(made: Made, variant: str, tmp_path: Path) -> None:
    directory, model = made(variant)
    (path,) = write(tmp_path / "model.gguf", gemma_contents(model, complete=variant in COMPLETE))
    ids = sample_ids(SHORT if variant in LARGEST else LENGTH)
    found = zoo_logits(path, ids)
    assert_equal(found, checkpoints.logits(model, ids))
    assert_equal(found, zoo_logits(directory, ids))
    if variant == "gemma1 untied":  # llama.cpp knows Gemma 1 with a tied head only
        with pytest.raises(ValueError, match="does not load"):
            LlamaCpp(path)
        return
    # The table's error grows with the layers.
    assert_close(found, llamacpp_logits(path, ids), GELU_TABLE * (4 if variant in LARGEST else 1))


@pytest.mark.parametrize(("complete", "variant"), [(True, "gemma3"), (True, "gemma3 linear")])
def test_keys_of_late_converters_change_nothing(made: Made, tmp_path: Path, complete: bool, variant: str) -> None:
    _, model = made(variant)
    ids = sample_ids(LENGTH)
    (path,) = write(tmp_path / "model.gguf", gemma_contents(model, complete=complete))
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


def test_a_pattern_may_be_a_number(made: Made, tmp_path: Path) -> None:
    _, model = made("gemma3 pattern")
    contents = gemma_contents(model)
    contents.keys["gemma3.attention.sliding_window_pattern"] = 3
    (path,) = write(tmp_path / "model.gguf", contents)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))
    assert_close(zoo_logits(path, ids), llamacpp_logits(path, ids))


def test_early_files_of_gemma2_lack_caps_and_window(made: Made, tmp_path: Path) -> None:
    _, model = made("gemma2 as published")
    contents = gemma_contents(model)
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base", "attention.sliding_window"):
        del contents.keys[f"gemma2.{key}"]
    (path,) = write(tmp_path / "model.gguf", contents)
    with ModelSource.open(path) as source:
        config = Gemma2Config.from_gguf(source)
    assert (config.sliding_window, config.attn_logit_softcapping, config.final_logit_softcapping) == (4096, 50.0, 30.0)
    ids = sample_ids(WINDOW)  # within which 4096 is as good as 16
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


def test_caps_may_be_null(made: Made, tmp_path: Path) -> None:
    path, _ = made("gemma2")
    model = save_gemma(tmp_path, "gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert json.loads((tmp_path / "config.json").read_text())["attn_logit_softcapping"] is None
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))
    assert (zoo_logits(tmp_path, ids) - zoo_logits(path, ids)).abs().max() > 0.1


@pytest.mark.parametrize("variant", ["gemma1 wide", "gemma2 wide", "gemma3 wide"])
@pytest.mark.parametrize("kind", ["Q4_K", "mixed"])
@pytest.mark.usefixtures("reference_kernels")
def test_quantised_gguf_equals_its_rounded_weights(made: Made, tmp_path: Path, variant: str, kind: str) -> None:
    contents = gemma_contents(made(variant)[1])
    types: Any = kind
    if kind == "mixed":
        kinds = ["Q4_K", "Q6_K", "Q8_0", "F32", "Q5_0"]
        types = {name: kinds[i % len(kinds)] for i, name in enumerate(contents.tensors)}
    (path,) = write(tmp_path / "packed.gguf", contents, types=types)
    (dense,) = write(tmp_path / "dense.gguf", rounded(contents, types))
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), zoo_logits(dense, ids))
    assert_close(zoo_logits(dense, ids), llamacpp_logits(dense, ids))


@pytest.mark.parametrize("variant", ["gemma1", "gemma2", "gemma3"])
def test_fused_qkv_equals_split(made: Made, tmp_path: Path, variant: str) -> None:
    contents = gemma_contents(made(variant)[1])
    (split,) = write(tmp_path / "split.gguf", contents)
    fuse_qkv(contents)
    assert "blk.0.attn_qkv.weight" in contents.tensors
    (fused,) = write(tmp_path / "fused.gguf", contents)
    ids = sample_ids(SHORT)
    assert torch.equal(zoo_logits(fused, ids), zoo_logits(split, ids))


@pytest.mark.parametrize("variant", ["gemma1", "gemma2", "gemma3"])
@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_bfloat16_is_as_close_as_that_of_transformers(made: Made, tmp_path: Path, variant: str, form: str) -> None:
    path, model = made(variant)
    ids = sample_ids(LENGTH)
    exact = checkpoints.logits(model, ids)
    half = type(model).from_pretrained(path, dtype=torch.bfloat16, attn_implementation="eager")
    theirs = (checkpoints.logits(half, ids).float() - exact).square().mean().sqrt()
    if form == "gguf":
        (path,) = write(tmp_path / "model.gguf", gemma_contents(model))
    ours = (zoo_logits(path, ids, dtype="bfloat16", cache_dtype="bfloat16") - exact).square().mean().sqrt()
    assert 0 < ours < 1.3 * theirs


def test_the_embedding_in_bfloat16_is_that_of_transformers(tmp_path: Path) -> None:
    """The root of 40 is 6.3246, in bfloat16 6.3125: their product with a row differs by more than rounding."""
    model = save_gemma(tmp_path, "gemma1", hidden_size=40)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    ids = sample_ids(SHORT)
    with torch.no_grad():
        wanted = half(torch.tensor([ids]), output_hidden_states=True).hidden_states[0][0]
    with loaded(tmp_path, dtype="bfloat16") as llm:
        (found,) = llm.hidden_states(ids, layers=[0])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("variant", ["gemma1", "gemma2", "gemma3"])
def test_float16_is_refused(made: Made, variant: str) -> None:
    with pytest.raises(UsageError, match="float16") as caught:
        LLM.load(made(variant)[0], device="cpu", dtype="float16")
    assert "--dtype float32 or bfloat16" in str(caught.value.remedy)


def test_float16_is_not_chosen_where_weights_of_that_type_would_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU "auto" follows the weights, and Gemma's numbers do not fit."""
    monkeypatch.setattr(loader, "resolve_device", lambda name: torch.device("cuda", 0))
    save_file({"x": torch.ones(8, dtype=torch.float16)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with ModelSource.open(tmp_path) as source:
        assert loader.resolve_dtype(LoadOptions(), source) == torch.float16
        assert loader.within_dtypes(LoadOptions(), source, plugin.dtypes).dtype == "bfloat16"
        for dtype in ("float32", "bfloat16"):
            options = LoadOptions(dtype=dtype, context=3)
            assert loader.within_dtypes(options, source, plugin.dtypes) == options
        for bearable in (None, ("float32", "bfloat16", "float16")):
            assert loader.within_dtypes(LoadOptions(), source, bearable) == LoadOptions()


# --- The window in the cache ---


@pytest.mark.parametrize("variant", ["gemma2", "gemma3"])
def test_local_layers_keep_no_more_than_the_window(tmp_path: Path, variant: str) -> None:
    """Over a prompt and 150 tokens, and the same tokens as transformers, although most keys are gone."""
    window = 40
    model = save_gemma(tmp_path, variant, sliding_window=window)
    prompt = sample_ids(60)
    params = SamplingParams(max_tokens=150, temperature=0, ignore_eos=True)
    most: dict[int, int] = {}
    with loaded(tmp_path) as llm:
        managers = llm._engine.scheduler.managers
        local, everywhere = sorted(managers, key=lambda manager: manager.window or 10**9)
        assert (local.window, everywhere.window) == (window, None)
        free = [manager.num_free for manager in managers]
        step = llm._engine.step

        def watched() -> Any:
            output = step()
            for manager in managers:
                held = sum(block != 0 for blocks in manager._tables.values() for block in blocks)
                most[id(manager)] = max(held, most.get(id(manager), 0))
            return output

        llm._engine.step = watched  # type: ignore[method-assign]
        found = llm.generate(prompt, params).token_ids
        assert [manager.num_free for manager in managers] == free
    assert most[id(everywhere)] == -(-(60 + 150 - 1) // BLOCK_SIZE)
    # A window that begins and ends inside a block.
    assert most[id(local)] <= -(-window // BLOCK_SIZE) + 1
    wanted = model.generate(torch.tensor([prompt]), max_new_tokens=150, do_sample=False, eos_token_id=None)
    assert list(found) == wanted[0, 60:].tolist()


def test_the_pool_of_local_layers_is_smaller(made: Made) -> None:
    with loaded(made("gemma3")[0]) as llm:
        sizes = {manager.window: manager.num_blocks for manager in llm._engine.scheduler.managers}
        cache = llm._engine.runner.cache
        assert [cache[layer].window for layer in range(7)] == [WINDOW] * 5 + [None, WINDOW]
    assert sizes[WINDOW] < sizes[None]


# --- Inside of a multimodal model ---


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    path = tmp_path_factory.mktemp("multimodal")
    return path, save_multimodal(path)


def test_the_text_part_of_a_multimodal_model(multimodal: tuple[Path, PreTrainedModel]) -> None:
    path, model = multimodal
    assert any("vision_tower" in name for name in load_file(path / "model.safetensors"))
    ids = sample_ids(LENGTH, vocab_size=300)  # without the tokens that stand for images
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0]
    with loaded(path) as llm:
        assert_equal(llm.logits(ids), wanted)
        assert llm.info.plugin == "gemma"
        assert llm.info.architecture == "Gemma3ForConditionalGeneration"
        assert {1, 2} <= llm._stop_ids
        modules = {name.split(".")[0] for name, _ in llm.model.named_parameters()}
    assert modules == {"model"}


@pytest.mark.parametrize("spelling", ["version 4", "version 5"])
def test_both_spellings_of_its_tensors(multimodal: tuple[Path, PreTrainedModel], tmp_path: Path, spelling: str) -> None:
    path, _ = multimodal
    tensors = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        inner = name.removeprefix("model.").removeprefix("language_model.").removeprefix("model.")
        text = "vision_tower" not in name and "projector" not in name
        if spelling == "version 4":
            tensors[f"language_model.model.{inner}" if text else inner] = tensor
        else:
            tensors[f"model.language_model.{inner}" if text else f"model.{inner}"] = tensor
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).symlink_to(path / name)
    ids = sample_ids(SHORT)
    assert torch.equal(zoo_logits(tmp_path, ids), zoo_logits(path, ids))


PUBLISHED: dict[str, dict[str, Any]] = {
    "4b": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "27b": {
        "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504, "model_type": "gemma3_text",
        "num_attention_heads": 32, "num_hidden_layers": 62, "num_key_value_heads": 16, "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "1b": {
        "head_dim": 256, "hidden_size": 1152, "intermediate_size": 6912, "model_type": "gemma3_text",
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6, "vocab_size": 262144, "max_position_embeddings": 32768,
        "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "attention_bias": False,
    },
    "one kind of layer": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "rope_parameters": {"full_attention": {"rope_type": "default"}},
    },
}  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED)
def test_what_published_configurations_leave_out(tmp_path: Path, size: str) -> None:
    """Read by transformers and by zoo, the same numbers."""
    wrapped = {
        "architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106], "model_type": "gemma3",
        "text_config": PUBLISHED[size], "vision_config": {"hidden_size": 1152},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(wrapped))
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with ModelSource.open(tmp_path) as source:
        found = Gemma3Config.from_hf(source)
    wanted = Gemma3TextConfig(**json.loads(json.dumps(PUBLISHED[size])))
    for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "sliding_window",
        "num_key_value_heads", "head_dim", "rms_norm_eps", "query_pre_attn_scalar", "max_position_embeddings",
        "final_logit_softcapping", "tie_word_embeddings",
    ):  # fmt: skip
        assert getattr(found, key) == getattr(wanted, key), key
    assert list(found.layer_types) == wanted.layer_types
    assert found.eos_token_ids == (1, 106)
    for kind, rope in found.rope.items():
        theirs = wanted.rope_parameters[kind]
        assert (rope.theta, rope.type) == (theirs["rope_theta"], theirs["rope_type"])
        assert rope.factor == theirs.get("factor", 1.0)


@pytest.mark.parametrize("generation", ["gemma1", "gemma2"])
def test_what_old_configurations_leave_out(tmp_path: Path, generation: str) -> None:
    kind = type(gemma_config(generation))
    values = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
    name = {"gemma1": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM"}[generation]
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name], **values, "hidden_act": "gelu"}))
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with ModelSource.open(tmp_path) as source:
        found = (GemmaConfig if generation == "gemma1" else Gemma2Config).from_hf(source)
    wanted = kind(**values)
    for key in ("vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"):
        assert getattr(found, key) == getattr(wanted, key), key
    for key in ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"):
        assert getattr(found, key) == getattr(wanted, key, 256 if key == "query_pre_attn_scalar" else None), key
    if generation == "gemma2":
        assert list(found.layer_types) == wanted.layer_types


# --- What is refused ---

REFUSED = [
    *(("hf", name, "3n") for name in ("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration")),
    *(("hf", name, "4") for name in ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration")),
    ("hf", "Gemma4UnifiedForConditionalGeneration", "4"),
    ("gguf", "gemma3n", "3n"),
    ("gguf", "gemma4", "4"),
]


@pytest.mark.parametrize(("form", "name", "generation"), REFUSED)
def test_later_generations_are_recognised_and_refused(
    made: Made, tmp_path: Path, form: str, name: str, generation: str
) -> None:
    directory, model = made("gemma1")
    path = tmp_path
    if form == "hf":
        config = {**json.loads((directory / "config.json").read_text()), "architectures": [name]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").symlink_to(directory / "model.safetensors")
    else:
        (path,) = write(tmp_path / "model.gguf", Contents(name, {}, gemma_contents(model).tensors))
    with pytest.raises(PluginError, match=f"Gemma {generation}'s .* are not implemented"):
        LLM.load(path, device="cpu")


Edit = Callable[[Contents], Any]


def set_key(key: str, value: Any) -> Edit:
    return lambda contents: contents.keys.update({f"gemma3.{key}": value})


def drop_key(key: str) -> Edit:
    return lambda contents: contents.keys.pop(f"gemma3.{key}")


def set_tensor(name: str, *shape: int) -> Edit:
    return lambda contents: contents.tensors.update({name: np.ones(shape, np.float32)})


def drop_tensor(name: str) -> Edit:
    return lambda contents: contents.tensors.pop(name)


GGUF_ERRORS: dict[str, tuple[Edit, type[ZooError], str]] = {
    "no window": (drop_key("attention.sliding_window"), ConfigError, r"gemma3\.attention\.sliding_window is missing"),
    "window 0": (set_key("attention.sliding_window", 0), ConfigError, r"attention\.sliding_window is 0"),
    "pattern 0": (set_key("attention.sliding_window_pattern", 0), ConfigError, r"sliding_window_pattern is 0"),
    "pattern text": (set_key("attention.sliding_window_pattern", "x"), ConfigError, r"sliding_window_pattern is 'x'"),
    "pattern short": (
        set_key("attention.sliding_window_pattern", [True, False]), ConfigError, r"sliding_window_pattern is \[True"
    ),
    "pattern of numbers": (
        set_key("attention.sliding_window_pattern", [2] * 7), ConfigError, r"sliding_window_pattern is \[2"
    ),
    "local theta 0": (set_key("rope.freq_base_swa", 0.0), ConfigError, r"rope\.freq_base_swa is 0\.0"),
    "theta NaN": (set_key("rope.freq_base", float("nan")), ConfigError, r"rope\.freq_base"),
    "factor 0": (set_key("rope.scaling.factor", 0.0), ConfigError, r"rope\.scaling\.factor"),
    "rope type": (set_key("rope.scaling.type", "spiral"), ConfigError, "spiral"),
    "cap 0": (set_key("final_logit_softcapping", 0.0), ConfigError, r"final_logit_softcapping is 0\.0"),
    "cap negative": (set_key("final_logit_softcapping", -30.0), ConfigError, r"final_logit_softcapping is -30\.0"),
    "value_length": (set_key("attention.value_length", 16), ConfigError, r"attention\.value_length is 16"),
    "partial rotation": (set_key("rope.dimension_count", 8), ConfigError, r"rope\.dimension_count is 8"),
    "eps absent": (drop_key("attention.layer_norm_rms_epsilon"), ConfigError, "layer_norm_rms_epsilon is missing"),
    "heads": (set_key("attention.head_count_kv", 3), ConfigError, r"attention\.head_count_kv is 3"),
    "layers": (set_key("block_count", 10**9), ConfigError, r"gemma3\.block_count is 1000000000"),
    "a layer less": (set_key("block_count", 6), WeightError, r"blk\.6\."),
    "a layer more": (set_key("block_count", 8), WeightError, r"layers\.7\."),
    "no q_norm": (drop_tensor("blk.3.attn_q_norm.weight"), WeightError, r"layers\.3\.self_attn\.q_norm\.weight"),
    "no post norm": (drop_tensor("blk.0.post_ffw_norm.weight"), WeightError, "post_feedforward_layernorm"),
    "no embedding": (drop_tensor("token_embd.weight"), ConfigError, r"token_embd\.weight"),
    "unknown tensor": (set_tensor("blk.0.attn_sinks.weight", 4), WeightError, r"blk\.0\.attn_sinks\.weight"),
    "bias": (set_tensor("blk.0.attn_q.bias", 128), WeightError, r"blk\.0\.attn_q\.bias"),
    "wide norm": (set_tensor("blk.1.attn_k_norm.weight", 64), WeightError, r"attn_k_norm\.weight has shape \[64\]"),
}  # fmt: skip


@pytest.mark.parametrize("fault", GGUF_ERRORS)
def test_a_wrong_gguf_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    edit, error, message = GGUF_ERRORS[fault]
    contents = gemma_contents(made("gemma3 linear")[1])
    edit(contents)
    (path,) = write(tmp_path / "wrong.gguf", contents)
    with pytest.raises(error, match=message) as caught:
        LLM.load(path, device="cpu")
    assert caught.value.remedy
    assert "wrong.gguf" in str(caught.value)


@pytest.mark.parametrize(("generation", "tensor"), [("gemma1", "attn_q_norm"), ("gemma2", "attn_k_norm")])
def test_norms_of_another_generation_are_refused(made: Made, tmp_path: Path, generation: str, tensor: str) -> None:
    contents = gemma_contents(made(generation)[1])
    contents.tensors[f"blk.0.{tensor}.weight"] = np.ones(32, np.float32)
    (path,) = write(tmp_path / "wrong.gguf", contents)
    with pytest.raises(WeightError, match=rf"blk\.0\.{tensor}\.weight"):
        LLM.load(path, device="cpu")


_LOCAL = {"rope_type": "default", "rope_theta": 10000.0}

HF_ERRORS: dict[str, tuple[str, dict[str, Any], type[ZooError], str]] = {
    "activation 1": ("gemma1", {"hidden_act": "silu"}, ConfigError, "hidden_act is 'silu'"),
    "activation 2": ("gemma2", {"hidden_activation": "gelu"}, ConfigError, "hidden_activation is 'gelu'"),
    "activation 3": ("gemma3", {"hidden_activation": "silu"}, ConfigError, "hidden_activation is 'silu'"),
    "bias": ("gemma1", {"attention_bias": True}, ConfigError, "attention_bias is True"),
    "embedding model": (
        "gemma3", {"use_bidirectional_attention": True}, ConfigError, "use_bidirectional_attention is True"
    ),
    "capped scores": ("gemma3", {"attn_logit_softcapping": 50.0}, ConfigError, r"attn_logit_softcapping is 50\.0"),
    "cap 0": ("gemma2", {"attn_logit_softcapping": 0}, ConfigError, "attn_logit_softcapping is 0"),
    "cap text": ("gemma2", {"final_logit_softcapping": "30"}, ConfigError, "final_logit_softcapping is '30'"),
    "scalar 0": ("gemma2", {"query_pre_attn_scalar": 0}, ConfigError, "query_pre_attn_scalar is 0"),
    "window 0": ("gemma3", {"sliding_window": 0}, ConfigError, "sliding_window is 0"),
    "window text": ("gemma2", {"sliding_window": "16"}, ConfigError, "sliding_window is '16'"),
    "layer types short": ("gemma3", {"layer_types": ["full_attention"]}, ConfigError, r"layer_types is \['full"),
    "layer type": ("gemma2", {"layer_types": ["chunked_attention"] * 4}, ConfigError, r"layer_types is \['chunked"),
    "layer types text": ("gemma2", {"layer_types": "full_attention"}, ConfigError, "layer_types is full_attention"),
    "pattern 0": ("gemma3", {"layer_types": None, "sliding_window_pattern": 0}, ConfigError, "pattern is 0"),
    "kv heads": ("gemma3", {"num_key_value_heads": 3}, ConfigError, "num_key_value_heads is 3"),
    "heads 0": ("gemma1", {"num_attention_heads": 0}, ConfigError, "num_attention_heads is 0"),
    "layers": ("gemma3", {"num_hidden_layers": 10**9}, ConfigError, "num_hidden_layers is 1000000000"),
    "head_dim": ("gemma1", {"head_dim": 16}, WeightError, r"self_attn\.\w_proj\.weight"),
    "vocab_size": ("gemma1", {"vocab_size": 321}, WeightError, r"embed_tokens\.weight needs \[321, 64\]"),
    "eos text": ("gemma1", {"eos_token_id": "<eos>"}, ConfigError, "eos_token_id is '<eos>'"),
    "tied text": ("gemma1", {"tie_word_embeddings": "yes"}, ConfigError, "tie_word_embeddings is 'yes'"),
    "untied without a head": ("gemma2", {"tie_word_embeddings": False}, WeightError, r"lm_head\.weight \[320, 64\]"),
    "rope type": (
        "gemma3", {"rope_parameters": {**ROPE3, "full_attention": {"rope_type": "spiral"}}}, ConfigError, "spiral"
    ),
    "factor 0": (
        "gemma3", {"rope_parameters": {**ROPE3, "full_attention": {"rope_type": "linear", "factor": 0}}},
        ConfigError, r"rope_scaling\.factor is 0",
    ),
    "local theta": (
        "gemma3", {"rope_parameters": {**ROPE3, "sliding_attention": {**_LOCAL, "rope_theta": -1}}},
        ConfigError, "rope_theta is -1",
    ),
    "old local theta": (
        "gemma3", {"rope_parameters": None, "rope_local_base_freq": 0}, ConfigError, "rope_local_base_freq is 0"
    ),
    "rope a list": ("gemma3", {"rope_parameters": [1]}, ConfigError, "rope"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HF_ERRORS)
def test_a_wrong_config_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    variant, changes, error, message = HF_ERRORS[fault]
    directory, _ = made(variant)
    config = {**json.loads((directory / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(directory / name)
    with pytest.raises(error, match=message) as caught:
        LLM.load(tmp_path, device="cpu")
    assert caught.value.remedy
    assert str(tmp_path) in str(caught.value)


def test_leftovers_and_the_older_spelling_of_rotation(made: Made, tmp_path: Path) -> None:
    directory, model = made("gemma3 linear")
    config = json.loads((directory / "config.json").read_text())
    config["rope_scaling"] = {"type": "linear", "factor": config.pop("rope_parameters")["full_attention"]["factor"]}
    config |= {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6}
    del config["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").symlink_to(directory / "tokenizer.json")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()  # tied, and there a second time
    save_file(tensors, tmp_path / "model.safetensors")
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


def test_the_tables_name_what_exists_and_the_writer_knows_nothing_of_them() -> None:
    plugin.check()
    assert "zoo_gemma" not in Path(gemma_gguf.__file__).read_text()
