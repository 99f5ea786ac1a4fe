"""zoo-mistral against transformers and llama.cpp, on tiny random checkpoints in three layouts."""

from __future__ import annotations

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

from oracle import checkpoints, mistral_gguf
from oracle.checkpoints import sample_ids, save_checkpoint
from oracle.gguf_writer import Contents, fuse_qkv, rounded, write
from oracle.llamacpp import LlamaCpp
from oracle.mistral_checkpoints import (
    PATTERN,
    VARIANTS,
    WINDOW,
    YARN,
    mistral_config,
    save_consolidated,
    save_wrapper,
)
from oracle.mistral_gguf import mistral_contents
from zoo import LLM, SamplingParams
from zoo.cli.inspect import describe
from zoo.errors import ConfigError, PluginError, SourceError, WeightError, ZooError
from zoo.plugin.manager import PluginManager
from zoo.settings import Settings
from zoo.source import ModelSource

TOLERANCE = 1e-4
LENGTH = 100  # past the windows, which are 20, and the original contexts, which are 32

WINDOWED = [name for name, (_, values) in VARIANTS.items() if values.get("sliding_window")]
MOE = [name for name in VARIANTS if name.startswith("Mixtral")]

Made = Callable[[str], tuple[Path, PreTrainedModel]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Checkpoints by variant, each written once."""
    known: dict[str, tuple[Path, PreTrainedModel]] = {}

    def make(variant: str) -> tuple[Path, PreTrainedModel]:
        if variant not in known:
            path = tmp_path_factory.mktemp("checkpoint")
            known[variant] = path, save_checkpoint(path, mistral_config(variant))
        return known[variant]

    return make


@contextmanager
def loaded(path: Path, *, owner: str = "mistral", **options: Any) -> Iterator[LLM]:
    with LLM.load(path, **{"device": "cpu", "dtype": "float32", "cache_dtype": "float32", **options}) as llm:
        assert llm.info.plugin == owner
        yield llm


def zoo_logits(path: Path, ids: list[int], **options: Any) -> Tensor:
    with loaded(path, **options) as llm:
        return llm.logits(ids)


def llamacpp_logits(path: Path, ids: list[int]) -> Tensor:
    with LlamaCpp(path, context=512, threads=1) as model:
        return torch.from_numpy(model.logits(ids))


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    assert 1 < wanted.std() < 3, "the checkpoint's logits are too small or too large to tell anything"
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < TOLERANCE


def with_window(contents: Contents, model: PreTrainedModel) -> Contents:
    """The keys that say which layers slide."""
    name = f"{contents.architecture}.attention.sliding_window"
    contents.keys[name] = model.config.sliding_window
    if getattr(model.config, "layer_types", None) == PATTERN:
        contents.keys[f"{name}_pattern"] = [kind == "sliding_attention" for kind in PATTERN]
    return contents


# --- Parity ---


@pytest.mark.parametrize("variant", VARIANTS)
def test_safetensors_logits_equal_transformers(made: Made, variant: str) -> None:
    path, model = made(variant)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gguf_logits_equal_llamacpp(made: Made, variant: str, tmp_path: Path) -> None:
    """These files name no window, and llama.cpp knows none: where there is one, the files are another model."""
    _, model = made(variant)
    contents = mistral_contents(model)
    (path,) = write(tmp_path / "model.gguf", contents)
    ids = sample_ids(LENGTH)
    dense = contents.architecture == "llama" and variant not in MOE
    found = zoo_logits(path, ids, owner="llama" if dense else "mistral")
    assert_equal(found, llamacpp_logits(path, ids))
    if variant not in WINDOWED:
        assert_equal(found, checkpoints.logits(model, ids))
    else:
        # Within the window it is the same model.
        assert_equal(found[:WINDOW], checkpoints.logits(model, ids)[:WINDOW])


@pytest.mark.parametrize("variant", ["Nemo", "tied", "Mixtral 8x7B"])
def test_gguf_files_that_call_themselves_mistral3(made: Made, variant: str, tmp_path: Path) -> None:
    """The text part of a Small 3.1 does, without YaRN and temperature."""
    _, model = made(variant)
    (path,) = write(tmp_path / "model.gguf", mistral_contents(model, architecture="mistral3"))
    ids = sample_ids(LENGTH)
    found = zoo_logits(path, ids)
    assert_equal(found, checkpoints.logits(model, ids))
    assert_equal(found, llamacpp_logits(path, ids))


def test_the_older_spelling_of_rope_parameters(made: Made, tmp_path: Path) -> None:
    path, model = made("Ministral 3")
    config = json.loads((path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
    ids = sample_ids(LENGTH)
    found = zoo_logits(copy_of(path, tmp_path, config=config), ids)
    assert_equal(found, checkpoints.logits(model, ids))


@pytest.mark.parametrize("variant", WINDOWED)
def test_gguf_with_a_window_equals_transformers(made: Made, variant: str, tmp_path: Path) -> None:
    _, model = made(variant)
    (path,) = write(tmp_path / "model.gguf", with_window(mistral_contents(model), model))
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


def test_a_window_can_be_given_to_a_gguf_by_hand(made: Made, tmp_path: Path) -> None:
    _, model = made("7B v0.1")
    (path,) = write(tmp_path / "model.gguf", mistral_contents(model))
    ids = sample_ids(LENGTH)
    found = zoo_logits(path, ids, overrides={".attention.sliding_window": WINDOW})
    assert_equal(found, checkpoints.logits(model, ids))


def test_a_pattern_of_windows_may_be_a_number(made: Made, tmp_path: Path) -> None:
    """llama.cpp's form: in each group of n layers the last does not slide."""
    path, model = made("7B v0.1")
    contents = mistral_contents(model)
    contents.keys |= {"llama.attention.sliding_window": WINDOW, "llama.attention.sliding_window_pattern": 4}
    (gguf,) = write(tmp_path / "model.gguf", contents)
    config = json.loads((path / "config.json").read_text())
    config |= {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "model_type": "ministral"}
    directory = copy_of(path, tmp_path / "hf", config=config)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(gguf, ids), zoo_logits(directory, ids))


@pytest.mark.parametrize("variant", MOE)
def test_experts_that_lie_apart_in_old_gguf_files(made: Made, variant: str, tmp_path: Path) -> None:
    """Files from before April 2024, which llama.cpp reads no more."""
    _, model = made(variant)
    contents = mistral_contents(model, stacked=False)
    assert "blk.0.ffn_gate.3.weight" in contents.tensors
    if variant in WINDOWED:
        with_window(contents, model)
    (path,) = write(tmp_path / "model.gguf", contents)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


def test_fused_gguf_tensors(made: Made, tmp_path: Path) -> None:
    _, model = made("Mixtral 8x7B")
    contents = mistral_contents(model)
    fuse_qkv(contents)
    for layer in range(4):
        parts = [contents.tensors.pop(f"blk.{layer}.ffn_{part}_exps.weight") for part in ("gate", "up")]
        contents.tensors[f"blk.{layer}.ffn_gate_up_exps.weight"] = np.concatenate(parts, axis=1)
    (path,) = write(tmp_path / "model.gguf", contents)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), checkpoints.logits(model, ids))


@pytest.mark.usefixtures("reference_kernels")
def test_quantised_experts_equal_their_rounded_weights(tmp_path: Path) -> None:
    """The mix of a Q4_K_M with eight experts: keys and values Q8_0, the output projection Q5_K, the router F32."""
    config = mistral_config(
        "Mixtral 8x7B", hidden_size=256, intermediate_size=256, num_hidden_layers=2, initializer_range=0.1
    )
    contents = mistral_contents(save_checkpoint(tmp_path, config))
    kinds = {"attn_k": "Q8_0", "attn_v": "Q8_0", "attn_output": "Q5_K", "ffn_gate_inp": "F32", "output": "Q6_K"}
    types = {name: kinds.get(name.split(".")[-2], "Q4_K") for name in contents.tensors}
    (path,) = write(tmp_path / "packed.gguf", contents, types=types)
    (dense,) = write(tmp_path / "dense.gguf", rounded(contents, types))
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(path, ids), llamacpp_logits(dense, ids))


# --- Mistral's own layout ---


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "Ministral 3 mscale"])
def test_a_consolidated_directory_equals_the_other(made: Made, variant: str, tmp_path: Path) -> None:
    _, model = made(variant)
    save_consolidated(tmp_path, model)
    assert {file.name for file in tmp_path.iterdir()} == {"consolidated.safetensors", "params.json", "tekken.json"}
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


def test_a_consolidated_file_beside_config_json(made: Made, tmp_path: Path) -> None:
    path, model = made("Nemo")
    save_consolidated(tmp_path, model)
    (tmp_path / "params.json").unlink()
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


def test_a_directory_with_both_layouts_is_read_once(made: Made, tmp_path: Path) -> None:
    """As Mistral's repositories on the hub are."""
    path, model = made("Nemo")
    save_consolidated(tmp_path, model)
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


def test_yarn_of_params_json_with_its_temperature(made: Made, tmp_path: Path) -> None:
    """apply_scale: cos and sin are multiplied by 0.1 ln(factor) + 1, as in YaRN without mscale."""
    _, model = made("Ministral 3")
    yarn = {"beta": 32.0, "alpha": 1.0, "factor": 16.0, "original_max_position_embeddings": 32, "apply_scale": True}
    save_consolidated(tmp_path, model, yarn=yarn)
    rope = {key: value for key, value in YARN.items() if not key.startswith("mscale")}
    directory = tmp_path / "hf"
    same = save_checkpoint(directory, mistral_config("Ministral 3", rope_parameters=rope))
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(same, ids))


@pytest.mark.parametrize(("window", "theta"), [(WINDOW, 1e4), (None, 1e6)])
def test_the_base_of_params_json_without_rope_theta(
    made: Made, tmp_path: Path, window: int | None, theta: float
) -> None:
    _, model = made("7B v0.1" if window else "7B v0.3")
    assert model.config.rope_parameters["rope_theta"] == theta
    save_consolidated(tmp_path, model, rope_theta=None)
    ids = sample_ids(LENGTH)
    assert_equal(zoo_logits(tmp_path, ids), checkpoints.logits(model, ids))


def test_a_consolidated_directory_answers(made: Made, tmp_path: Path) -> None:
    _, model = made("7B v0.3")
    save_consolidated(tmp_path, model)
    with loaded(tmp_path) as llm:
        assert llm.tokenizer.pre == "tekken"
        prompt = llm.tokenizer.encode("the theory of 12")
        assert prompt[0] == 1
        found = llm.generate("the theory of 12", SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
    wanted = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert list(found.token_ids) == wanted[0, len(prompt) :].tolist()


# --- FP8 ---


@pytest.mark.parametrize("scale_type", [torch.float32, torch.bfloat16])
def test_fp8_with_one_scale_per_matrix(made: Made, tmp_path: Path, scale_type: torch.dtype) -> None:
    """As Ministral 3 is published. The rounded weights, unpacked, go through transformers."""
    path, model = made("Ministral 3")
    tensors: dict[str, Tensor] = {}
    rounded_state = {}
    for name, value in load_file(path / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = rounded_state[name] = value
            continue
        scale = (value.abs().max() / 448).to(scale_type)
        tensors[name] = (value / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
        tensors[name.replace(".weight", ".activation_scale")] = torch.tensor(0.5)
        rounded_state[name] = tensors[name].float() * scale.float()
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    same = type(model)(model.config).eval()
    same.load_state_dict(rounded_state)
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(same, ids)
    assert_equal(zoo_logits(copy_of(path, tmp_path, config=config, tensors=tensors), ids), wanted)
    assert (wanted - checkpoints.logits(model, ids)).abs().max() > 100 * TOLERANCE
    del tensors["model.layers.0.mlp.up_proj.weight_scale_inv"]
    with pytest.raises(WeightError, match=r"layers\.0\.mlp\.up_proj\.weight is F8_E4M3 but there is no"):
        LLM.load(copy_of(path, tmp_path, config=config, tensors=tensors))


# --- Wrappers ---


@pytest.mark.parametrize("variant", ["7B v0.3", "Ministral 3"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_text_part_of_a_wrapper(variant: str, tied: bool, tmp_path: Path) -> None:
    model = save_wrapper(tmp_path, variant, tied=tied)
    names = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("vision_tower.") for name in names)
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(model, ids)
    assert_equal(zoo_logits(tmp_path, ids), wanted)
    # Names of transformers 5, and a configuration that does not say whether the head is tied.
    renamed = {}
    for name, value in names.items():
        if name.startswith("language_model."):
            name = name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_", "lm_")
        else:
            name = f"model.{name}"
        renamed[name] = value
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    config["text_config"].pop("tie_word_embeddings", None)
    other = copy_of(tmp_path, tmp_path / "other", config=config, tensors=renamed)
    assert_equal(zoo_logits(other, ids), wanted)


def test_latent_attention_is_refused_with_a_reason(made: Made, tmp_path: Path) -> None:
    path, model = made("Nemo")
    config = json.loads((path / "config.json").read_text())
    wrapper = {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": {"model_type": "mistral4"}}
    for number, changed in enumerate(
        ({**config, **wrapper}, {**config, "architectures": ["Mistral4ForCausalLM"], "model_type": "mistral4"})
    ):
        with pytest.raises(PluginError, match="latent attention of Mistral Small 4"):
            LLM.load(copy_of(path, tmp_path / str(number), config=changed))
    save_consolidated(tmp_path, model, kv_lora_rank=16)
    with pytest.raises(PluginError, match="latent attention of Mistral Small 4"):
        LLM.load(tmp_path)
    contents = mistral_contents(model)
    contents.architecture = "mistral4"
    with pytest.raises(PluginError, match="latent attention of Mistral Small 4"):
        LLM.load(write(tmp_path / "model.gguf", contents)[0])


# --- The cache ---


@pytest.mark.parametrize("variant", ["7B v0.1", "Ministral 8B", "Mixtral window"])
def test_layers_with_a_window_keep_no_more_than_it(made: Made, variant: str) -> None:
    """Blocks held over a long generation: those that the window touches in sliding layers, all in the others."""
    path, model = made(variant)
    ids = sample_ids(70)
    held: dict[bool, list[int]] = {}
    with loaded(path, context=512) as llm:
        scheduler = llm._engine.scheduler
        step = scheduler.computed

        def watch(chunk: Any) -> None:
            step(chunk)
            for manager in scheduler.managers:
                used = sum(block != 0 for block in manager.table(chunk.sequence.request_id))
                held.setdefault(manager.window is not None, []).append(used)
                assert manager.window in (None, WINDOW)

        scheduler.computed = watch
        found = llm.generate(ids, SamplingParams(max_tokens=330, temperature=0, ignore_eos=True)).token_ids
        block = llm._engine.runner.cache.block_size
    assert len(found) == 330
    assert len(held[True]) >= 330
    assert max(held[True][1:]) <= -(-(WINDOW - 1) // block) + 1
    if variant == "Ministral 8B":
        assert held[False][-1] == -(-399 // block)
    else:
        assert False not in held
    # What was forgotten was not needed: the whole text at once gives the same choices.
    logits = checkpoints.logits(model, [*ids, *found[:-1]])[len(ids) - 1 :]
    chosen = logits.gather(-1, torch.tensor(found)[:, None])[:, 0]
    assert (logits.max(-1).values - chosen).max() < TOLERANCE


@pytest.mark.parametrize("variant", ["7B v0.1", "Ministral 3", "Ministral 3 window"])
def test_generation_past_every_length_equals_transformers(made: Made, variant: str) -> None:
    path, model = made(variant)
    prompts = [sample_ids(count, seed=count) for count in (3, 40, 65)]
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    with loaded(path) as llm:
        together = [result.token_ids for result in llm.generate(prompts, params)]
    for prompt, found in zip(prompts, together, strict=True):
        logits = checkpoints.logits(model, [*prompt, *found])[len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == list(found)


# --- Whose model it is ---


def test_inspect_names_the_plugin_of_each_layout(made: Made, tmp_path: Path) -> None:
    path, model = made("Mixtral 8x7B")
    (gguf,) = write(tmp_path / "model.gguf", mistral_contents(model))
    own = tmp_path / "own"
    own.mkdir()
    save_consolidated(own, model)
    manager = PluginManager.discover(Settings.from_env())
    for place, architecture in ((path, "MixtralForCausalLM"), (gguf, "llama"), (own, "params.json")):
        with ModelSource.open(place) as source:
            report = describe(source, manager, {"device": "cpu", "dtype": "auto", "context": None, "plugin": None})
        found = [report[key] for key in ("architectures", "plugin", "distribution", "layers", "hidden_size", "context")]
        assert found == [[architecture], "mistral", "zoo-mistral", 4, 64, 512]
        assert not report["problems"]


def test_only_zoo_llama_says_which_distribution_is_missing(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo.plugin import manager

    (mixtral,) = write(tmp_path / "mixtral.gguf", mistral_contents(made("Mixtral 8x7B")[1]))
    installed = [plugin for plugin in manager.announced() if plugin.distribution == "zoo-llama"]
    monkeypatch.setattr(manager, "announced", lambda: installed)
    with pytest.raises(PluginError, match="zoo-mistral runs it") as caught:
        LLM.load(mixtral)
    assert caught.value.remedy == "pip install zoo-mistral"
    save_consolidated(tmp_path, made("Nemo")[1])
    (tmp_path / "mixtral.gguf").unlink()
    for path in (made("Nemo")[0], tmp_path):
        with pytest.raises(PluginError, match="no plugin knows") as caught:
            LLM.load(path)
        assert caught.value.remedy == "pip install zoo-mistral"


# --- Wrong files ---


def copy_of(directory: Path, target: Path, *, config: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Path:
    """A checkpoint with another configuration or other tensors."""
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(config))
    (target / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    if tensors is None:
        (target / "model.safetensors").symlink_to(directory / "model.safetensors")
    else:
        save_file(tensors, target / "model.safetensors")
    return target


_FULL = ["full_attention"] * 3
HF_ERRORS: dict[str, tuple[str, dict[str, Any], type[ZooError], str]] = {
    "activation": ("Nemo", {"hidden_act": "gelu"}, ConfigError, "hidden_act is 'gelu'"),
    "kv heads": ("Nemo", {"num_key_value_heads": 3}, ConfigError, "num_key_value_heads is 3"),
    "layers 10^9": ("Nemo", {"num_hidden_layers": 10**9}, ConfigError, "num_hidden_layers is 1000000000"),
    "head_dim lost": ("Nemo", {"head_dim": None}, WeightError, r"self_attn\.\w_proj\.weight"),
    "tied a text": ("Nemo", {"tie_word_embeddings": "yes"}, ConfigError, "tie_word_embeddings is 'yes'"),
    "window 0": ("7B v0.1", {"sliding_window": 0}, ConfigError, "sliding_window is 0"),
    "window a text": ("7B v0.1", {"sliding_window": "20"}, ConfigError, "sliding_window is '20'"),
    "layer type": (
        "Ministral 8B", {"layer_types": [*_FULL, "chunked_attention"]}, ConfigError, "layer_types is .*chunked"
    ),
    "layer types too few": ("Ministral 8B", {"layer_types": _FULL}, ConfigError, "layer_types is "),
    "layer types a text": ("Ministral 8B", {"layer_types": "full_attention"}, ConfigError, "layer_types is "),
    "sliding without a window": ("Ministral 8B", {"sliding_window": None}, ConfigError, "sliding_window is null"),
    "rope type": (
        "Ministral 3", {"rope_parameters": {**YARN, "rope_type": "spiral"}}, ConfigError, "spiral"
    ),
    "factor 0": ("Ministral 3", {"rope_parameters": {**YARN, "factor": 0}}, ConfigError, r"rope_scaling\.factor is 0"),
    "beta a text": (
        "Ministral 3", {"rope_parameters": {**YARN, "llama_4_scaling_beta": "0.1"}}, ConfigError,
        r"llama_4_scaling_beta is '0\.1'",
    ),
    "beta negative": (
        "Ministral 3", {"rope_parameters": {**YARN, "llama_4_scaling_beta": -0.1}}, ConfigError,
        r"llama_4_scaling_beta is -0\.1",
    ),
    "original 0": (
        "Ministral 3", {"rope_parameters": {**YARN, "original_max_position_embeddings": 0}}, ConfigError,
        "original_max_position_embeddings is 0",
    ),
    "experts 0": ("Mixtral 8x7B", {"num_local_experts": 0}, ConfigError, "num_local_experts is 0"),
    "experts too few": ("Mixtral 8x7B", {"num_local_experts": 4}, WeightError, "expert|gate"),
    "experts too many": ("Mixtral 8x7B", {"num_local_experts": 9}, WeightError, "expert|gate"),
    "more used than there are": (
        "Mixtral 8x7B", {"num_experts_per_tok": 9}, ConfigError, "num_experts_per_tok is 9 of 8 experts"
    ),
    "eos text": ("Nemo", {"eos_token_id": "</s>"}, ConfigError, "eos_token_id is '</s>'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HF_ERRORS)
def test_a_wrong_config_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    variant, changes, error, message = HF_ERRORS[fault]
    path, _ = made(variant)
    copy_of(path, tmp_path, config={**json.loads((path / "config.json").read_text()), **changes})
    with pytest.raises(error, match=message) as caught:
        LLM.load(tmp_path, device="cpu")
    assert caught.value.remedy
    assert str(tmp_path) in str(caught.value)


_YARN = {"beta": 32.0, "alpha": 1.0, "factor": 16.0, "original_max_position_embeddings": 32}
PARAMS_ERRORS: dict[str, tuple[str, dict[str, Any], type[ZooError], str]] = {
    "dim missing": ("Nemo", {"dim": None}, ConfigError, "dim is missing"),
    "heads 0": ("Nemo", {"n_heads": 0}, ConfigError, "n_heads is 0"),
    "kv heads": ("Nemo", {"n_kv_heads": 3}, ConfigError, "n_kv_heads is 3"),
    "eps": ("Nemo", {"norm_eps": -1}, ConfigError, "norm_eps is -1"),
    "vocab": ("Nemo", {"vocab_size": 321}, WeightError, r"needs \[321, 64\]"),
    "mamba": ("Nemo", {"model_type": "mamba"}, ConfigError, "model_type is 'mamba'"),
    "activation": ("Nemo", {"activation": "gelu"}, ConfigError, "activation is 'gelu'"),
    "window": ("7B v0.1", {"sliding_window": -5}, ConfigError, "sliding_window is -5"),
    "pattern": ("7B v0.1", {"sliding_window": [20, None, 20]}, ConfigError, r"sliding_window is \[20, None, 20\]"),
    "pattern empty": ("7B v0.1", {"sliding_window": []}, ConfigError, r"sliding_window is \[\]"),
    "hidden pattern": (
        "Ministral 8B", {"_sliding_window": [True] * 4}, ConfigError, r"_sliding_window is \[True"
    ),
    "yarn without factor": ("Ministral 3", {"yarn": {"beta": 32}}, ConfigError, r"yarn\.factor is missing"),
    "yarn a list": ("Ministral 3", {"yarn": [16]}, ConfigError, r"yarn\.factor is missing"),
    "yarn scale": ("Ministral 3", {"yarn": {**_YARN, "apply_scale": 1}}, ConfigError, r"yarn\.apply_scale is 1"),
    "scaling without length": (
        "Ministral 3", {"llama_4_scaling": {"beta": 0.1}}, ConfigError,
        r"llama_4_scaling\.original_max_position_embeddings is missing",
    ),
    "moe without number": ("Mixtral 8x7B", {"moe": {"num_experts_per_tok": 2}}, ConfigError, r"moe\.num_experts is"),
    "moe used": (
        "Mixtral 8x7B", {"moe": {"num_experts": 8, "num_experts_per_tok": 0}}, ConfigError,
        r"moe\.num_experts_per_tok is 0",
    ),
    "moe of no experts": ("Mixtral 8x7B", {"moe": None}, WeightError, r"feed_forward"),
    "quantised": ("Nemo", {"quantization": {"qformat_weight": "fp8_e4m3"}}, SourceError, "quantised as fp8_e4m3"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PARAMS_ERRORS)
def test_wrong_params_are_refused(made: Made, tmp_path: Path, fault: str) -> None:
    variant, changes, error, message = PARAMS_ERRORS[fault]
    save_consolidated(tmp_path, made(variant)[1], **changes)
    with pytest.raises(error, match=message) as caught:
        LLM.load(tmp_path, device="cpu")
    assert caught.value.remedy
    assert str(tmp_path) in str(caught.value)
    if error is ConfigError:
        assert "params.json" in caught.value.message


Edit = Callable[[Contents], Any]


def key(name: str, value: Any) -> Edit:
    return lambda contents: contents.keys.update({f"{contents.architecture}.{name}": value})


GGUF_ERRORS: dict[str, tuple[str, Edit, type[ZooError], str]] = {
    "used experts absent": (
        "Mixtral 8x7B", lambda c: c.keys.pop("llama.expert_used_count"), ConfigError, "expert_used_count is missing"
    ),
    "used experts 9": ("Mixtral 8x7B", key("expert_used_count", 9), ConfigError, "expert_used_count is 9 of 8"),
    "experts 9": ("Mixtral 8x7B", key("expert_count", 9), WeightError, "experts|gate"),
    "experts a text": ("Mixtral 8x7B", key("expert_count", "8"), ConfigError, "expert_count is '8'"),
    "an expert missing": (
        "old", lambda c: c.tensors.pop("blk.1.ffn_up.6.weight"), WeightError, "lacks 1 of 8 experts, the first is 6"
    ),
    "expert 8 of 8": (
        "old", lambda c: c.tensors.update({"blk.1.ffn_up.8.weight": np.ones((48, 64), np.float32)}), WeightError,
        r"blk\.1\.ffn_up\.8\.weight is expert 8",
    ),
    "stacked and apart": (
        "old", lambda c: c.tensors.update({"blk.1.ffn_up_exps.weight": np.ones((8, 48, 64), np.float32)}), WeightError,
        r"blk\.1\.ffn_up.* and ",
    ),
    "router missing": (
        "Mixtral 8x7B", lambda c: c.tensors.pop("blk.2.ffn_gate_inp.weight"), WeightError, r"layers\.2\.mlp\.gate"
    ),
    "partial rotation": ("Ministral 3", key("rope.dimension_count", 8), ConfigError, "rope.dimension_count is 8"),
    "temperature a text": (
        "Ministral 3", key("attention.temperature_scale", "x"), ConfigError, "temperature_scale is 'x'"
    ),
    "temperature without a length": (
        "Ministral 3", key("rope.scaling.type", "none"), ConfigError, "temperature_length is"
    ),
    "log multiplier": (
        "Ministral 3", key("rope.scaling.yarn_log_multiplier", -1.0), ConfigError, "yarn_log_multiplier is -1.0"
    ),
    "pattern of a wrong length": (
        "Ministral 3 window",
        lambda c: c.keys.update({
            "mistral3.attention.sliding_window": 20, "mistral3.attention.sliding_window_pattern": [True, False],
        }),
        ConfigError, "sliding_window_pattern has 2 entries",
    ),
    "window a text": ("Ministral 3", key("attention.sliding_window", "20"), ConfigError, "sliding_window is '20'"),
    "a bias": (
        "Ministral 3", lambda c: c.tensors.update({"blk.0.attn_q.bias": np.ones(96, np.float32)}), WeightError,
        r"blk\.0\.attn_q\.bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", GGUF_ERRORS)
def test_a_wrong_gguf_is_refused(made: Made, tmp_path: Path, fault: str) -> None:
    variant, edit, error, message = GGUF_ERRORS[fault]
    old = variant == "old"
    contents = mistral_contents(made("Mixtral 8x7B" if old else variant)[1], stacked=not old)
    edit(contents)
    (path,) = write(tmp_path / "wrong.gguf", contents)
    with pytest.raises(error, match=message) as caught:
        LLM.load(path, device="cpu")
    assert caught.value.remedy
    assert "wrong.gguf" in str(caught.value)


def test_the_independent_writer_shares_nothing_with_the_plugin() -> None:
    assert "zoo_mistral" not in Path(mistral_gguf.__file__).read_text()
