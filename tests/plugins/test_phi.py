"""zoo-phi against transformers and llama.cpp, on tiny random checkpoints in both formats."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from oracle import checkpoints, phi_gguf
from oracle.checkpoints import sample_ids, save_checkpoint
from oracle.gguf_writer import Contents, fuse_qkv, rounded, write
from oracle.llamacpp import LlamaCpp
from oracle.phi_checkpoints import (
    CONTEXT,
    ORIGINAL,
    longrope,
    phi2_config,
    phi3_config,
    phi3_long_config,
    phi4_mini_config,
    phimoe_config,
)
from oracle.phi_gguf import phi_contents
from zoo import LLM, SamplingParams, kernels
from zoo.engine.capacity import BLOCK_SIZE
from zoo.errors import ConfigError, PluginError, WeightError, ZooError
from zoo.kernels import Routing
from zoo.nn import LayerNorm, Router
from zoo.plugin.manager import PluginManager
from zoo.quant.tensor import QuantTensor
from zoo.settings import Settings
from zoo.source import ModelSource

TOLERANCE = 1e-4
GELU_TOLERANCE = 7e-3  # llama.cpp looks GELU up in a table of half precision
LENGTH = 80  # past the original context of 64 and every window
WINDOW = 17
# What the converter writes for PhiMoE whatever its configuration says: with it, both formats say the same.
BY_RULE = (1 + np.log(CONTEXT / ORIGINAL) / np.log(ORIGINAL)) ** 0.5

VARIANTS: dict[str, Callable[[], Any]] = {
    "phi-2": phi2_config,
    "phi-1": lambda: phi2_config(partial_rotary_factor=0.5),
    "phi-2 grouped": lambda: phi2_config(num_key_value_heads=2),
    "phi-2 eps": lambda: phi2_config(layer_norm_eps=0.3),
    "phi-3": phi3_config,
    "phi-3 window": lambda: phi3_config(sliding_window=WINDOW),
    "phi-3 eps": lambda: phi3_config(rms_norm_eps=0.1),
    "phi-3-medium": lambda: phi3_config(num_key_value_heads=1, num_attention_heads=5, sliding_window=WINDOW),
    "phi-3.5-mini": phi3_long_config,
    "phi-3.5 window": lambda: phi3_long_config(sliding_window=WINDOW),
    "phi-4": lambda: phi3_config(rope_parameters={"rope_type": "default", "rope_theta": 250000.0}),
    "phi-4-mini": phi4_mini_config,
    "phi-3.5-moe": lambda: phimoe_config(
        rope_parameters=longrope(
            20, short_mscale=BY_RULE, long_mscale=BY_RULE, original_max_position_embeddings=ORIGINAL
        )
    ),
    "phimoe plain": lambda: phimoe_config(
        attention_bias=False, lm_head_bias=False, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    ),
    "phimoe window": lambda: phimoe_config(
        sliding_window=WINDOW, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    ),
}

Made = Callable[[str], tuple[Path, PreTrainedModel]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Checkpoints by variant, each written once."""

    @functools.cache
    def make(variant: str) -> tuple[Path, PreTrainedModel]:
        path = tmp_path_factory.mktemp("phi")
        return path, save_checkpoint(path, VARIANTS[variant]())

    return make


@contextmanager
def loaded(path: Path, **options: Any) -> Iterator[LLM]:
    options = {"device": "cpu", "dtype": "float32", "cache_dtype": "float32", "context": CONTEXT, **options}
    with LLM.load(path, **options) as llm:
        assert llm.info.plugin == "phi"
        yield llm


def zoo_logits(path: Path, ids: list[int], **options: Any) -> Tensor:
    with loaded(path, **options) as llm:
        return llm.logits(ids)


def reference(model: PreTrainedModel, ids: list[int], *, long: bool | None = None) -> Tensor:
    """Logits by transformers, which takes LongRoPE's long factors for sequences past the original context.

    `long` demands a set. PhiMoE's class (5.23) never takes the long factors of its own accord, so it is told to.
    """
    rotary = model.model.rotary_emb
    long = len(ids) > ORIGINAL if long is None else long
    if rotary.rope_type != "longrope" or model.config.model_type != "phimoe":
        if long and len(ids) <= ORIGINAL:  # what follows does not count, but makes the sequence long
            return checkpoints.logits(model, ids + [5] * ORIGINAL)[: len(ids)]
        return checkpoints.logits(model, ids)
    chosen = rotary.rope_init_fn
    rotary.rope_init_fn = functools.partial(chosen, seq_len=ORIGINAL + 1 if long else 1)
    try:
        return checkpoints.logits(model, ids)
    finally:
        rotary.rope_init_fn = chosen


def llamacpp_logits(path: Path, ids: list[int], context: int = CONTEXT) -> Tensor:
    with LlamaCpp(path, context=context, threads=1) as model:
        return torch.from_numpy(model.logits(ids))


def assert_equal(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    assert 1 < wanted.std() < 3, "the checkpoint's logits are too small or too large to tell anything"
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < tolerance


# --- Parity ---


@pytest.mark.parametrize(("context", "length"), [(CONTEXT, LENGTH), (ORIGINAL, ORIGINAL)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_safetensors_logits_equal_transformers(made: Made, variant: str, context: int, length: int) -> None:
    path, model = made(variant)
    ids = sample_ids(length)
    assert_equal(zoo_logits(path, ids, context=context), reference(model, ids))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gguf_logits_equal_safetensors_and_transformers(made: Made, variant: str, tmp_path: Path) -> None:
    directory, model = made(variant)
    (path,) = write(tmp_path / "model.gguf", phi_contents(model))
    ids = sample_ids(LENGTH)
    found = zoo_logits(path, ids)
    assert_equal(found, reference(model, ids))
    assert_equal(found, zoo_logits(directory, ids))
    assert_equal(zoo_logits(path, ids[:50], context=ORIGINAL), reference(model, ids[:50]))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "moe" not in name and "window" not in name])
def test_gguf_logits_equal_llamacpp(made: Made, variant: str, tmp_path: Path) -> None:
    """But for windows, which llama.cpp leaves out, and for PhiMoE: see below."""
    contents = phi_contents(made(variant)[1])
    contents.keys.pop("phi3.attention.sliding_window", None)
    (path,) = write(tmp_path / "model.gguf", contents)
    tolerance = GELU_TOLERANCE if variant.startswith(("phi-1", "phi-2")) else TOLERANCE
    for length in (LENGTH, 10):  # llama.cpp too goes by the context, not by the length
        ids = sample_ids(length)
        assert_equal(zoo_logits(path, ids), llamacpp_logits(path, ids), tolerance)


def test_short_factors_equal_llamacpp(made: Made, tmp_path: Path) -> None:
    """Where the context is as long as the original one; llama.cpp has none below 256."""
    contents = phi_contents(save_checkpoint(tmp_path, phi3_long_config()))
    contents.keys |= {"phi3.context_length": 1024, "phi3.rope.scaling.original_context_length": 256}
    (path,) = write(tmp_path / "gguf", contents)
    ids = sample_ids(LENGTH)
    short, long = zoo_logits(path, ids, context=256), zoo_logits(path, ids, context=512)
    assert_equal(short, llamacpp_logits(path, ids, 256))
    assert_equal(long, llamacpp_logits(path, ids, 512))
    assert (short - long).abs().max() > 1


def test_phimoe_equals_llamacpp_but_for_norms_and_routing(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp takes norms without the mean and the softmax of the two best; with these zoo is equal to it too."""

    def without_mean(self: LayerNorm, x: Tensor, add: Any = ...) -> Any:
        normed, total = kernels.rms_norm(x, self.weight, eps=self.eps, add=None if add is ... else add)
        return normed + self.bias if add is ... else (normed + self.bias, total)

    (path,) = write(tmp_path / "model.gguf", phi_contents(made("phi-3.5-moe")[1]))
    ids = sample_ids(LENGTH)
    theirs = llamacpp_logits(path, ids)
    with loaded(path) as llm:
        assert (llm.logits(ids) - theirs).abs().max() > 1
        monkeypatch.setattr(LayerNorm, "forward", without_mean)
        for router in (module for module in llm.model.modules() if isinstance(module, Router)):
            router.routing = Routing(2, "softmax", normalize=True)
        assert_equal(llm.logits(ids), theirs)


@pytest.mark.parametrize("variant", ["phi-3.5-mini", "phi-4-mini", "phi-3.5-moe"])
def test_the_context_chooses_the_factors_not_the_length(made: Made, variant: str) -> None:
    path, model = made(variant)
    ids = sample_ids(20)
    assert_equal(zoo_logits(path, ids, context=ORIGINAL), reference(model, ids))
    for context in (ORIGINAL + 1, CONTEXT, None):
        assert_equal(zoo_logits(path, ids, context=context), reference(model, ids, long=True))


def test_mscale_of_phimoe(made: Made, tmp_path: Path) -> None:
    """config.json has its own, one per set; the converter's key loses them, and may be set by hand."""
    rope = longrope(20, short_mscale=1.2, long_mscale=1.3, original_max_position_embeddings=ORIGINAL)
    model = save_checkpoint(tmp_path / "hf", phimoe_config(rope_parameters=rope))
    (path,) = write(tmp_path / "model.gguf", phi_contents(model))
    ids = sample_ids(LENGTH)
    wanted = reference(model, ids)
    assert_equal(zoo_logits(tmp_path / "hf", ids), wanted)
    assert_equal(zoo_logits(tmp_path / "hf", ids[:30], context=ORIGINAL), reference(model, ids[:30]))
    assert (zoo_logits(path, ids) - wanted).abs().max() > 0.1
    assert_equal(zoo_logits(path, ids, overrides={".rope.scaling.attn_factor": 1.3}), wanted)


@pytest.mark.parametrize("variant", ["phi-2", "phi-3.5-moe"])
def test_hidden_states_equal_transformers(made: Made, variant: str) -> None:
    path, model = made(variant)
    ids = sample_ids(40)
    with torch.no_grad():
        wanted = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    with loaded(path, context=ORIGINAL) as llm:
        for layer, state in enumerate(llm.hidden_states(ids, layers=range(4))):
            assert (state - wanted[layer][0]).abs().max() < TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("variant", ["phi-2", "phi-4-mini"])
def test_half_precision_is_as_close_as_that_of_transformers(made: Made, variant: str, dtype: str) -> None:
    path, model = made(variant)
    ids = sample_ids(LENGTH)
    exact = reference(model, ids)
    half = type(model).from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="eager")
    theirs = (reference(half, ids).float() - exact).square().mean().sqrt()
    ours = (zoo_logits(path, ids, dtype=dtype, cache_dtype=dtype) - exact).square().mean().sqrt()
    assert 0 < ours < 1.3 * theirs


# --- The window ---


@pytest.mark.parametrize("variant", ["phi-3 window", "phimoe window"])
def test_a_window_is_kept_in_generation(made: Made, variant: str) -> None:
    path, model = made(variant)
    prompts = [sample_ids(count, seed=count) for count in (3, 40)]
    params = SamplingParams(max_tokens=50, temperature=0, ignore_eos=True)
    with loaded(path) as llm:
        found = [result.token_ids for result in llm.generate(prompts, params)]
    for prompt, ids in zip(prompts, found, strict=True):
        wanted = model.generate(
            torch.tensor([prompt]), max_new_tokens=50, do_sample=False, eos_token_id=None, pad_token_id=1
        )
        assert list(ids) == wanted[0, len(prompt) :].tolist()


@pytest.mark.parametrize("variant", ["phi-3 window", "phi-3", "phimoe window"])
def test_the_cache_holds_no_more_than_the_window(made: Made, variant: str) -> None:
    path, _ = made(variant)
    params = SamplingParams(max_tokens=150, temperature=0, ignore_eos=True)
    with loaded(path) as llm:
        (manager,) = llm._engine.scheduler.managers
        held = [manager.num_blocks - 1 - manager.num_free for _ in llm.stream(sample_ids(60), params)]
    windows = -(-(WINDOW - 1) // BLOCK_SIZE) + 1  # it may begin and end inside a block
    if "window" in variant:
        assert max(held[1:]) <= windows
    else:
        assert max(held) == -(-209 // BLOCK_SIZE)


def test_a_window_of_the_context_or_more_hides_nothing(made: Made, tmp_path: Path) -> None:
    contents = phi_contents(made("phi-3")[1])
    for window in (0, CONTEXT, 1 << 18):
        contents.keys["phi3.attention.sliding_window"] = window
        (path,) = write(tmp_path / f"{window}.gguf", contents)
        with loaded(path) as llm:
            assert llm.model.config.sliding_window is None
    assert (zoo_logits(path, sample_ids(9)) - reference(made("phi-3")[1], sample_ids(9))).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("variant", "context", "window"), [("phi-3", 4096, 2047), ("phi-3", 16384, None), ("phi-3.5-mini", 4096, None)]
)
def test_the_first_phi3_files_have_no_key_for_their_window(
    made: Made, tmp_path: Path, variant: str, context: int, window: int | None
) -> None:
    contents = phi_contents(made(variant)[1])
    del contents.keys["phi3.attention.sliding_window"]
    contents.keys["phi3.context_length"] = context
    (path,) = write(tmp_path / "old.gguf", contents)
    with loaded(path) as llm:
        assert llm.model.config.sliding_window == window


# --- Files ---

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Contents]:
    """Contents of models wide enough for K-quants."""
    make = {"phi2": phi2_config, "phi3": phi3_config, "phimoe": phimoe_config}
    longropes = {"phimoe": longrope(64, short_mscale=1.2, long_mscale=1.2, original_max_position_embeddings=ORIGINAL)}

    @functools.cache
    def contents(architecture: str) -> Contents:
        changes = dict(WIDE)
        if architecture == "phimoe":
            changes |= {"intermediate_size": 256, "rope_parameters": longropes["phimoe"]}  # type: ignore[dict-item]
        if architecture == "phi2":
            changes |= {"intermediate_size": 1024, "partial_rotary_factor": 0.5}
        return phi_contents(save_checkpoint(tmp_path_factory.mktemp("wide"), make[architecture](**changes)))

    return contents


@pytest.mark.parametrize(
    ("architecture", "kind"), [("phi2", "Q4_K"), ("phi3", "Q4_0"), ("phi3", "Q6_K"), ("phimoe", "Q4_K")]
)
@pytest.mark.usefixtures("reference_kernels")
def test_quantised_gguf_equals_its_rounded_weights_in_float32(
    wide: Callable[[str], Contents], tmp_path: Path, architecture: str, kind: str
) -> None:
    contents = wide(architecture)
    types = {name: kind for name in contents.tensors if "ffn_gate_inp" not in name}
    (path,) = write(tmp_path / "packed.gguf", contents, types=types)
    (dense,) = write(tmp_path / "dense.gguf", rounded(contents, types))
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), zoo_logits(dense, ids))


def data_ranges(llm: LLM) -> list[tuple[int, int]]:
    """Where the tensors of a model's files lie in memory."""
    source = llm._source
    starts = {name: np.frombuffer(source.read(name), np.uint8).ctypes.data for name in source.tensors}
    return [(start, start + source.tensors[name].nbytes) for name, start in starts.items()]


@pytest.mark.parametrize("architecture", ["phi3", "phimoe"])
def test_fused_packed_rows_stay_views_of_the_file(
    wide: Callable[[str], Contents], tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CPU_REPACK", "off")
    (path,) = write(tmp_path / "model.gguf", wide(architecture), types="Q4_K")
    with loaded(path) as llm:
        ranges = data_ranges(llm)
        weights = [w for m in llm.model.modules() for w in vars(m).values() if isinstance(w, QuantTensor)]
        assert len(weights) == 2 + 2 * (7 if architecture == "phi3" else 5)
        for weight in weights:
            data = weight.parts["data"]
            assert any(low <= data.data_ptr() and data.data_ptr() + data.nbytes <= high for low, high in ranges)


@pytest.mark.parametrize("variant", ["phi-2", "phi-3", "phi-3.5-moe"])
def test_dense_weights_stay_views_of_the_file(made: Made, variant: str) -> None:
    with loaded(made(variant)[0]) as llm:
        ranges = data_ranges(llm)
        for name, parameter in llm.model.named_parameters():
            if parameter.is_meta:
                continue
            end = parameter.data_ptr() + parameter.nbytes
            assert any(low <= parameter.data_ptr() and end <= high for low, high in ranges), name


@pytest.mark.parametrize("variant", ["phi-2", "phi-3.5-moe"])
def test_fused_qkv_equals_split(made: Made, tmp_path: Path, variant: str) -> None:
    contents = phi_contents(made(variant)[1])
    (split,) = write(tmp_path / "split.gguf", contents)
    fuse_qkv(contents)
    assert "blk.0.attn_q.bias" not in contents.tensors
    (fused,) = write(tmp_path / "fused.gguf", contents)
    ids = sample_ids(LENGTH)
    assert torch.equal(zoo_logits(fused, ids), zoo_logits(split, ids))


def test_split_projections_of_phi3_equal_fused_ones(made: Made, tmp_path: Path) -> None:
    contents = phi_contents(made("phi-3")[1])
    (fused,) = write(tmp_path / "fused.gguf", contents)
    for layer in range(3):
        rows = contents.tensors.pop(f"blk.{layer}.attn_qkv.weight")
        for part, piece in zip("qkv", np.split(rows, [80, 120]), strict=True):
            contents.tensors[f"blk.{layer}.attn_{part}.weight"] = piece
    (split,) = write(tmp_path / "split.gguf", contents)
    ids = sample_ids(LENGTH)
    assert torch.equal(zoo_logits(fused, ids), zoo_logits(split, ids))


def test_fused_experts_equal_split(made: Made, tmp_path: Path) -> None:
    contents = phi_contents(made("phi-3.5-moe")[1])
    (split,) = write(tmp_path / "split.gguf", contents)
    for layer in range(3):
        parts = [contents.tensors.pop(f"blk.{layer}.ffn_{part}_exps.weight") for part in ("gate", "up")]
        contents.tensors[f"blk.{layer}.ffn_gate_up_exps.weight"] = np.concatenate(parts, axis=1)
    (fused,) = write(tmp_path / "fused.gguf", contents)
    ids = sample_ids(LENGTH)
    assert torch.equal(zoo_logits(fused, ids), zoo_logits(split, ids))


def with_config(directory: Path, target: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """A checkpoint with another config.json."""
    config = json.loads((directory / "config.json").read_text())
    edit(config)
    (target / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "model.safetensors"):
        (target / name).symlink_to(directory / name)
    return target


def older(config: dict[str, Any]) -> None:
    """The spelling of the published Phi-3: rope_scaling of type "su", the rest at the root."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope["rope_theta"]
    config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    config["rope_scaling"] = {"type": "su", "short_factor": rope["short_factor"], "long_factor": rope["long_factor"]}
    config["attention_bias"] = False


def test_the_older_spelling_of_config(made: Made, tmp_path: Path) -> None:
    directory, model = made("phi-4-mini")
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(with_config(directory, tmp_path, older), ids), reference(model, ids))


def test_phimoe_as_published(made: Made, tmp_path: Path) -> None:
    """Microsoft's config.json spells the architecture with a capital E; tensors are per expert in both."""
    directory, model = made("phi-3.5-moe")
    assert "model.layers.0.block_sparse_moe.experts.7.w2.weight" in load_file(directory / "model.safetensors")
    path = with_config(directory, tmp_path, lambda config: config.update(architectures=["PhiMoEForCausalLM"]))
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), reference(model, ids))


# --- Wrong files ---


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Phi4MMForCausalLM", "adapters for vision and speech.*Phi-4-mini-instruct"),
        ("Phi4MultimodalForCausalLM", "adapters for vision and speech"),
        ("Phi3VForCausalLM", "image encoder"),
        ("Phi4ForCausalLMV", "vision encoder"),
        ("Phi4FlashForCausalLM", "state-space layers"),
        ("Phi3SmallForCausalLM", "block-sparse attention"),
    ],
)
def test_relatives_are_refused_with_the_reason(made: Made, tmp_path: Path, name: str, message: str) -> None:
    path = with_config(made("phi-3")[0], tmp_path, lambda config: config.update(architectures=[name]))
    with pytest.raises(PluginError, match=message):
        LLM.load(path)


@pytest.mark.parametrize("variant", ["phi-2", "phi-3", "phi-3.5-moe"])
def test_the_plugin_owns_its_files(made: Made, tmp_path: Path, variant: str) -> None:
    directory, model = made(variant)
    (path,) = write(tmp_path / "model.gguf", phi_contents(model))
    manager = PluginManager.discover(Settings.from_env())
    for place in (directory, path):
        with ModelSource.open(place) as source:
            assert manager.detect(source).name == "phi"


Edit = Callable[[Contents], Any]


def keys(**changes: Any) -> Edit:
    return lambda contents: contents.keys.update(
        {f"{contents.architecture}.{key.replace('__', '.')}": value for key, value in changes.items()}
    )


def no_key(key: str) -> Edit:
    return lambda contents: contents.keys.pop(f"{contents.architecture}.{key}")


def no_tensor(name: str) -> Edit:
    return lambda contents: contents.tensors.pop(name)


def tensor(name: str, *shape: int) -> Edit:
    return lambda contents: contents.tensors.update({name: np.ones(shape, np.float32)})


GGUF_ERRORS: dict[str, tuple[str, Edit, type[ZooError], str]] = {
    "phi2 eps": ("phi-2", no_key("attention.layer_norm_epsilon"), ConfigError, "layer_norm_epsilon is missing"),
    "phi2 bias of the head": ("phi-2", no_tensor("output.bias"), WeightError, r"lm_head\.bias"),
    "phi2 bias of a norm": ("phi-2", no_tensor("blk.1.attn_norm.bias"), WeightError, r"layernorm\.bias"),
    "phi2 odd rotation": ("phi-2", keys(rope__dimension_count=7), ConfigError, "rope.dimension_count 7"),
    "phi2 wide rotation": ("phi-2", keys(rope__dimension_count=22), ConfigError, "more than the 20 of a head"),
    "phi2 second norm": ("phi-2", tensor("blk.0.ffn_norm.weight", 80), WeightError, r"blk\.0\.ffn_norm\.weight"),
    "phi3 no context": ("phi-3", no_key("context_length"), ConfigError, "context_length is missing"),
    "phi3 eps": ("phi-3", keys(attention__layer_norm_rms_epsilon=0.0), ConfigError, "layer_norm_rms_epsilon is 0"),
    "phi3 window": ("phi-3", keys(attention__sliding_window=-1.5), ConfigError, "sliding_window is -1.5"),
    "phi3 kv heads": ("phi-3", keys(attention__head_count_kv=3), ConfigError, "head_count_kv is 3"),
    "phi3 other kv heads": ("phi-3", keys(attention__head_count_kv=4), WeightError, r"attn_qkv\.weight.* need 240"),
    "phi3 ffn": ("phi-3", keys(feed_forward_length=95), WeightError, r"ffn_up\.weight .* need 190 rows"),
    "phi3 gate apart": ("phi-3", tensor("blk.0.ffn_gate.weight", 96, 80), WeightError, r"blk\.0\.ffn_gate\.weight"),
    "phi3 bias": ("phi-3", tensor("blk.0.attn_qkv.bias", 160), WeightError, r"blk\.0\.attn_qkv\.bias"),
    "phi3.5 one set": (
        "phi-3.5-mini", no_tensor("rope_factors_short.weight"), ConfigError, "no tensor rope_factors_short.weight"
    ),
    "phi3.5 few factors": (
        "phi-3.5-mini", tensor("rope_factors_long.weight", 8), ConfigError, r"F32 \[8\]; expected F32 \[10\]"
    ),
    "phi3.5 no original": (
        "phi-3.5-mini", no_key("rope.scaling.original_context_length"), ConfigError, "original_context_length is None"
    ),
    "moe three": ("phi-3.5-moe", keys(expert_used_count=3), ConfigError, "expert_used_count is 3"),
    "moe no experts": ("phi-3.5-moe", no_key("expert_count"), ConfigError, "expert_count is missing"),
    "moe one expert": ("phi-3.5-moe", keys(expert_count=1), ConfigError, "1 experts for 2 a token"),
    "moe other experts": ("phi-3.5-moe", keys(expert_count=16), WeightError, r"ffn_(gate|up|down).*needs \[16"),
}  # fmt: skip


@pytest.mark.parametrize("fault", GGUF_ERRORS)
def test_a_wrong_gguf_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    variant, edit, error, message = GGUF_ERRORS[fault]
    contents = phi_contents(made(variant)[1])
    edit(contents)
    (path,) = write(tmp_path / "wrong.gguf", contents)
    with pytest.raises(error, match=message) as caught:
        LLM.load(path, device="cpu")
    assert caught.value.remedy
    assert "wrong.gguf" in str(caught.value)


HF_ERRORS: dict[str, tuple[str, dict[str, Any], type[ZooError], str]] = {
    "phi2 activation": ("phi-2", {"hidden_act": "gelu"}, ConfigError, "hidden_act is 'gelu'"),
    "phi2 norms of q and k": ("phi-2", {"qk_layernorm": True}, ConfigError, "qk_layernorm is True"),
    "phi2 share 0": ("phi-2", {"rope_parameters": {"partial_rotary_factor": 0}}, ConfigError, "factor is 0; it must"),
    "phi2 share 2": ("phi-2", {"rope_parameters": {"partial_rotary_factor": 2.0}}, ConfigError, "factor is 2.0"),
    "phi2 share text": (
        "phi-2", {"rope_parameters": None, "partial_rotary_factor": "0.4"}, ConfigError, "rotary_factor is '0.4'"
    ),
    "phi2 odd share": ("phi-2", {"rope_parameters": {"partial_rotary_factor": 0.25}}, ConfigError, "5 rotated"),
    "phi2 tiny share": ("phi-2", {"rope_parameters": {"partial_rotary_factor": 0.01}}, ConfigError, "0 rotated"),
    "phi2 rope": ("phi-2", {"rope_parameters": {"rope_type": "spiral"}}, ConfigError, "spiral"),
    "phi2 hidden_size": ("phi-2", {"hidden_size": None}, ConfigError, "hidden_size is missing"),
    "phi3 bias": ("phi-3", {"attention_bias": True}, ConfigError, "attention_bias is True"),
    "phi3 head bias": ("phi-3", {"lm_head_bias": True}, ConfigError, "lm_head_bias is True"),
    "phi3 window": ("phi-3", {"sliding_window": "2047"}, ConfigError, "sliding_window is '2047'"),
    "phi3 kv heads": ("phi-3", {"num_key_value_heads": 4}, WeightError, r"qkv_proj\.weight.* need 240 rows"),
    "phi3 ffn": ("phi-3", {"intermediate_size": 97}, WeightError, r"mlp\.(gate_up|down)_proj\.weight"),
    "phi3 rope a list": ("phi-3", {"rope_parameters": [1]}, ConfigError, "rope_scaling is"),
    "phi3 yarn": (
        "phi-3", {"rope_parameters": {"rope_type": "yarn", "short_factor": []}}, ConfigError, r"rope_scaling\.factor"
    ),
    "phi3.5 long_factor": (
        "phi-3.5-mini", {"rope_parameters": {**longrope(20), "long_factor": [1.0]}}, ConfigError, "a list of 1; it must"
    ),
    "phi3.5 original": ("phi-3.5-mini", {"original_max_position_embeddings": -1}, ConfigError, "embeddings is -1"),
    "moe three": ("phi-3.5-moe", {"num_experts_per_tok": 3}, ConfigError, "num_experts_per_tok is 3"),
    "moe one expert": ("phi-3.5-moe", {"num_local_experts": 1}, ConfigError, "1 experts for 2 a token"),
    "moe more experts": ("phi-3.5-moe", {"num_local_experts": 9}, WeightError, "9"),
    "moe fewer experts": ("phi-3.5-moe", {"num_local_experts": 7}, WeightError, "is expert 7"),
    "moe jitter": ("phi-3.5-moe", {"router_jitter_noise": 0}, ConfigError, "router_jitter_noise is 0"),
    "moe bias": ("phi-3.5-moe", {"attention_bias": False}, WeightError, r"self_attn\.\w_proj\.bias"),
    "moe head bias": ("phi-3.5-moe", {"lm_head_bias": False}, WeightError, r"lm_head\.bias"),
    "moe activation": ("phi-3.5-moe", {"hidden_act": "gelu"}, ConfigError, "hidden_act is 'gelu'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HF_ERRORS)
def test_a_wrong_config_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    variant, changes, error, message = HF_ERRORS[fault]
    path = with_config(made(variant)[0], tmp_path, lambda config: config.update(changes))
    with pytest.raises(error, match=message) as caught:
        LLM.load(path, device="cpu")
    assert caught.value.remedy
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "edit", "message"),
    [
        ("phi-2", lambda t: t.pop("model.layers.1.mlp.fc1.bias"), r"layers\.1\.mlp\.fc1\.bias"),
        ("phi-3", lambda t: t.pop("model.layers.2.self_attn.qkv_proj.weight"), r"self_attn\.q_proj\.weight"),
        ("phi-3", lambda t: t.update({"model.layers.0.mlp.extra.weight": torch.ones(2)}), r"layers\.0\.mlp\.extra"),
        ("phi-3.5-moe", lambda t: t.pop("model.layers.0.block_sparse_moe.experts.3.w3.weight"), "the first is 3"),
        ("phi-3.5-moe", lambda t: t.pop("model.layers.0.block_sparse_moe.gate.weight"), r"mlp\.router\.weight"),
    ],
)
def test_wrong_safetensors_are_refused(
    made: Made, tmp_path: Path, variant: str, edit: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    directory, _ = made(variant)
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).symlink_to(directory / name)
    with pytest.raises(WeightError, match=message) as caught:
        LLM.load(tmp_path, device="cpu")
    assert caught.value.remedy


def test_the_independent_writer_shares_nothing_with_the_plugin() -> None:
    assert "zoo_phi" not in Path(phi_gguf.__file__).read_text()
