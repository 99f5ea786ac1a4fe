"""What makes a Mistral silently wrong, done on purpose: each mistake must move the result far past the tolerance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from oracle import checkpoints
from oracle.checkpoints import sample_ids, save_checkpoint
from oracle.gguf_writer import write
from oracle.llamacpp import LlamaCpp
from oracle.mistral_checkpoints import WINDOW, mistral_config, save_consolidated, save_wrapper
from oracle.mistral_gguf import mistral_contents
from oracle.tekken import PATTERN, tekken, tiktoken_ids, write_tekken
from zoo import LLM
from zoo.kernels import Routing
from zoo_mistral import model as zoo_model
from zoo_mistral import weights
from zoo_mistral.config import MistralConfig

TOLERANCE = 1e-4
FACTOR = 100
LENGTH = 100

Change = Callable[[MistralConfig], dict[str, Any]]
Files = Callable[[str], tuple[dict[str, Path], PreTrainedModel]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The three layouts of one random model, made once."""
    known: dict[str, tuple[dict[str, Path], PreTrainedModel]] = {}

    def make(variant: str) -> tuple[dict[str, Path], PreTrainedModel]:
        if variant not in known:
            directory, own = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("consolidated")
            model = save_checkpoint(directory, mistral_config(variant))
            save_consolidated(own, model)
            contents = mistral_contents(model)
            if model.config.sliding_window is not None:
                contents.keys[f"{contents.architecture}.attention.sliding_window"] = WINDOW
            (gguf,) = write(tmp_path_factory.mktemp("gguf") / "model.gguf", contents)
            known[variant] = {"hf": directory, "params": own, "gguf": gguf}, model
        return known[variant]

    return make


def difference(path: Path, model: PreTrainedModel) -> float:
    ids = sample_ids(LENGTH)
    with LLM.load(path, device="cpu", dtype="float32", cache_dtype="float32") as llm:
        assert llm.info.plugin == "mistral"
        return float((llm.logits(ids) - checkpoints.logits(model, ids)).abs().max())


def change_config(monkeypatch: pytest.MonkeyPatch, form: str, change: Change) -> None:
    """Let the configuration be read wrongly."""
    read = getattr(MistralConfig, f"from_{form}")

    def wrong(source: Any) -> MistralConfig:
        config: MistralConfig = read(source)
        return config.model_copy(update=change(config))

    monkeypatch.setattr(MistralConfig, f"from_{form}", staticmethod(wrong))


def rope(**changes: Any) -> Change:
    return lambda config: {"rope": dataclasses.replace(config.rope, **changes)}


def value(**changes: Any) -> Change:
    return lambda config: changes


def shifted(config: MistralConfig) -> dict[str, Any]:
    return {"windows": (*config.windows[1:], config.windows[0])}


def wider(config: MistralConfig) -> dict[str, Any]:
    return {"windows": tuple(window and window + 1 for window in config.windows)}


def no_window(config: MistralConfig) -> dict[str, Any]:
    return {"windows": (None,) * len(config.windows)}


def all_windows(config: MistralConfig) -> dict[str, Any]:
    return {"windows": (WINDOW,) * len(config.windows)}


NO_MSCALE = {"mscale": None, "mscale_all_dim": None, "attention_factor": None}
MISTAKES: dict[str, tuple[str, str, Change]] = {
    "hf rows rotated as pairs": ("7B v0.1", "hf", rope(interleaved=True)),
    "gguf rows rotated as halves": ("7B v0.1", "gguf", rope(interleaved=False)),
    "consolidated rows rotated as halves": ("7B v0.1", "params", rope(interleaved=False)),
    "hf theta": ("7B v0.1", "hf", rope(theta=1e6)),
    "hf window lost": ("7B v0.1", "hf", no_window),
    "gguf window lost": ("7B v0.1", "gguf", no_window),
    "consolidated window lost": ("7B v0.1", "params", no_window),
    "window one key too wide": ("7B v0.1", "hf", wider),
    "windows in the wrong layers": ("Ministral 8B", "hf", shifted),
    "consolidated windows in the wrong layers": ("Ministral 8B", "params", shifted),
    "windows in every layer": ("Ministral 8B", "hf", all_windows),
    "hf temperature of queries lost": ("Ministral 3", "hf", value(llama_4_scaling_beta=None)),
    "gguf temperature of queries lost": ("Ministral 3", "gguf", value(llama_4_scaling_beta=None)),
    "consolidated temperature of queries lost": ("Ministral 3", "params", value(llama_4_scaling_beta=None)),
    "temperature from the whole context": ("Ministral 3", "hf", value(llama_4_scaling_length=512)),
    "temperature one position late": ("Ministral 3", "hf", value(llama_4_scaling_length=33)),
    "hf yarn lost": ("Ministral 3", "hf", rope(type="default")),
    "gguf yarn lost": ("Ministral 3", "gguf", rope(type="default")),
    "consolidated yarn lost": ("Ministral 3", "params", rope(type="default")),
    "hf mscale ignored": ("Ministral 3", "hf", rope(**NO_MSCALE)),
    "gguf log multiplier ignored": ("Ministral 3", "gguf", rope(**NO_MSCALE)),
    "gguf log multiplier read as DeepSeek's": ("Ministral 3", "gguf", rope(mscale_all_dim=10.0)),
    "consolidated apply_scale ignored": ("Ministral 3", "params", rope(**NO_MSCALE)),
    "betas of yarn swapped": ("Ministral 3", "params", rope(beta_fast=1.0, beta_slow=32.0)),
    "one expert too few": ("Mixtral 8x7B", "hf", value(num_experts_per_tok=1)),
    "one expert too many": ("Mixtral 8x7B", "gguf", value(num_experts_per_tok=3)),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_configuration_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    variant, form, change = MISTAKES[mistake]
    paths, model = files(variant)
    assert difference(paths[form], model) < TOLERANCE
    change_config(monkeypatch, form, change)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


@pytest.mark.parametrize("form", ["hf", "gguf", "params"])
@pytest.mark.parametrize("wrong", [{"normalize": False}, {"scale": 1.1}, {"scoring": "sigmoid"}])
def test_wrong_weights_of_experts_are_seen(
    files: Files, monkeypatch: pytest.MonkeyPatch, form: str, wrong: dict[str, Any]
) -> None:
    paths, model = files("Mixtral 8x7B")

    def routing(top_k: int, **values: Any) -> Routing:
        return Routing(top_k, **{**values, **wrong})

    monkeypatch.setattr(zoo_model, "Routing", routing)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


@pytest.mark.parametrize(("form", "table"), [("hf", "HF"), ("params", "HF"), ("gguf", "GGUF")])
def test_experts_with_gate_and_up_swapped_are_seen(
    files: Files, monkeypatch: pytest.MonkeyPatch, form: str, table: str
) -> None:
    paths, model = files("Mixtral 8x7B")
    names = getattr(weights, table)
    resolve = names.resolve
    swapped = {".w1.": ".w3.", ".w3.": ".w1.", "ffn_gate_exps": "ffn_up_exps", "ffn_up_exps": "ffn_gate_exps"}

    def wrong(name: str) -> Any:
        found = next((part for part in swapped if part in name), None)
        return resolve(name.replace(found, swapped[found]) if found else name)

    monkeypatch.setattr(names, "resolve", wrong)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


def test_a_head_tied_by_mistake_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers writes tie_word_embeddings: true into wrappers whose text part has a head of its own."""
    model = save_wrapper(tmp_path, "7B v0.3", tied=False)
    assert difference(tmp_path, model) < TOLERANCE
    change_config(monkeypatch, "hf", value(tie_word_embeddings=True))
    assert difference(tmp_path, model) > FACTOR * TOLERANCE


def test_a_query_scale_that_forgets_the_position_of_a_chunk_is_seen(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, model = files("Ministral 3")
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(model, ids)
    honest = zoo_model.position_scale

    def last() -> torch.Tensor:
        with LLM.load(paths["hf"], device="cpu", dtype="float32", cache_dtype="float32") as llm:
            return llm.model.logits(llm._engine.hidden(tuple(ids), 1)[-1:])[0]

    assert (last() - wanted[-1]).abs().max() < TOLERANCE
    monkeypatch.setattr(zoo_model, "position_scale", lambda q, positions, **rest: honest(q, positions * 0, **rest))
    assert (last() - wanted[-1]).abs().max() > FACTOR * TOLERANCE


TEXT = "12345 1234567 the Theory HTTPServer iPhone\n\n\n  of 2024, isn't 3.14159 ünïcödé"


def test_the_tekken_pattern_of_a_gguf_is_that_of_llamacpp(files: Files) -> None:
    """Where its pattern reads text as Mistral's does; for cases it does not, see tests/core/test_tokenizer_gguf."""
    paths, _ = files("7B v0.1")
    plain = "12345 1234567 the theory of 2024, isn't 3.14159\n\n\n  words"
    overrides = {"tokenizer.ggml.pre": "tekken"}
    contents = mistral_contents(files("7B v0.1")[1])
    contents.keys["tokenizer.ggml.pre"] = "tekken"
    (gguf,) = write(paths["gguf"].with_name("tekken.gguf"), contents)
    with LlamaCpp(gguf, vocab_only=True) as model:
        wanted = model.tokenize(plain)
    with LLM.load(paths["gguf"], device="cpu", overrides=overrides) as llm:
        assert llm.tokenizer.encode(plain, add_special=False) == wanted
    for wrong in ("llama-bpe", "gpt-2", "gpt-4o", "deepseek-llm"):
        with LLM.load(paths["gguf"], device="cpu", overrides={"tokenizer.ggml.pre": wrong}) as llm:
            assert llm.tokenizer.encode(plain, add_special=False) != wanted, wrong


WRONG_PATTERNS = {
    "digits in threes": PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),
    "no cases": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "spaces apart": PATTERN.replace(r"[^\r\n\p{L}\p{N}]?", ""),
}


@pytest.mark.parametrize("mistake", WRONG_PATTERNS)
def test_a_wrong_pattern_of_tekken_json_is_seen(files: Files, tmp_path: Path, mistake: str) -> None:
    save_consolidated(tmp_path, files("7B v0.1")[1])
    with LLM.load(tmp_path, device="cpu") as llm:
        assert llm.tokenizer.encode(TEXT, add_special=False) == tiktoken_ids(TEXT)
    content = tekken()
    assert content["config"]["pattern"] != WRONG_PATTERNS[mistake]
    content["config"]["pattern"] = WRONG_PATTERNS[mistake]
    write_tekken(tmp_path, content)
    with LLM.load(tmp_path, device="cpu") as llm:
        assert llm.tokenizer.encode(TEXT, add_special=False) != tiktoken_ids(TEXT)


def test_tekken_ids_without_the_offset_of_special_tokens_are_seen(files: Files, tmp_path: Path) -> None:
    save_consolidated(tmp_path, files("7B v0.1")[1])
    content = tekken()
    content["config"]["default_num_special_tokens"] += 1
    content["config"]["default_vocab_size"] += 1
    write_tekken(tmp_path, content)
    with LLM.load(tmp_path, device="cpu") as llm:
        assert llm.tokenizer.encode(TEXT, add_special=False) == [id + 1 for id in tiktoken_ids(TEXT)]
