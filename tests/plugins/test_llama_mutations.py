"""What makes a Llama silently wrong, done on purpose: each mistake must move the result far past the tolerance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from oracle import checkpoints
from oracle.checkpoints import llama_config, sample_ids, save_checkpoint
from oracle.gguf_writer import llama_contents, write
from oracle.llamacpp import LlamaCpp
from zoo import LLM
from zoo.nn import RopeParameters
from zoo_llama.config import LlamaConfig
from zoo_llama.weights import GGUF

TOLERANCE = 1e-4
FACTOR = 100
LENGTH = 100

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

Files = Callable[..., tuple[dict[str, Path], PreTrainedModel]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Both formats of one random model."""

    def make(**changes: Any) -> tuple[dict[str, Path], PreTrainedModel]:
        directory = tmp_path_factory.mktemp("checkpoint")
        model = save_checkpoint(directory, llama_config(**changes))
        (gguf,) = write(tmp_path_factory.mktemp("gguf") / "model.gguf", llama_contents(model))
        return {"hf": directory, "gguf": gguf}, model

    return make


def difference(path: Path, model: PreTrainedModel) -> float:
    ids = sample_ids(LENGTH)
    with LLM.load(path, device="cpu", dtype="float32", cache_dtype="float32") as llm:
        return float((llm.logits(ids) - checkpoints.logits(model, ids)).abs().max())


def change_rope(monkeypatch: pytest.MonkeyPatch, form: str, **changes: Any) -> None:
    """Let the parameters of every rotary embedding be read wrongly."""
    read = getattr(RopeParameters, f"from_{form}")

    def wrong(*args: Any, **kwargs: Any) -> RopeParameters:
        return dataclasses.replace(read(*args, **kwargs), **changes)

    monkeypatch.setattr(RopeParameters, f"from_{form}", staticmethod(wrong))


def change_config(monkeypatch: pytest.MonkeyPatch, form: str, **changes: Any) -> None:
    """Let the configuration be read wrongly."""
    read = getattr(LlamaConfig, f"from_{form}")

    def wrong(source: Any) -> LlamaConfig:
        return read(source).model_copy(update=changes)

    monkeypatch.setattr(LlamaConfig, f"from_{form}", staticmethod(wrong))


ROPE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gguf rows rotated as halves": ("gguf", {}, {"interleaved": False}),
    "hf rows rotated as pairs": ("hf", {}, {"interleaved": True}),
    "gguf rope_freqs dropped": ("gguf", {"rope_parameters": LLAMA3}, {"factors": None}),
    "hf llama3 scaling dropped": ("hf", {"rope_parameters": LLAMA3}, {"type": "default"}),
    "hf llama3 factor of 3.2 for 3.1": ("hf", {"rope_parameters": LLAMA3}, {"factor": 32.0}),
    "hf llama3 original context": ("hf", {"rope_parameters": LLAMA3}, {"original_max_position_embeddings": 256}),
    "gguf linear scaling dropped": ("gguf", {"rope_parameters": LINEAR}, {"type": "default"}),
    "hf linear scaling dropped": ("hf", {"rope_parameters": LINEAR}, {"type": "default"}),
    "gguf theta": ("gguf", {}, {"theta": 500000.0}),
    "hf theta": ("hf", {}, {"theta": 500000.0}),
}  # fmt: skip


@pytest.mark.parametrize("mistake", ROPE)
def test_a_wrong_rotation_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    form, changes, wrong = ROPE[mistake]
    paths, model = files(**changes)
    assert difference(paths[form], model) < TOLERANCE
    change_rope(monkeypatch, form, **wrong)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_a_wrong_epsilon_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    paths, model = files(rms_norm_eps=0.1)
    assert difference(paths[form], model) < TOLERANCE
    change_config(monkeypatch, form, rms_norm_eps=1e-6)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("module", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
def test_a_lost_bias_is_seen(files: Files, form: str, module: str) -> None:
    paths, model = files(attention_bias=True, mlp_bias=True)
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(model, ids)
    with LLM.load(paths[form], device="cpu", dtype="float32", cache_dtype="float32") as llm:
        assert float((llm.logits(ids) - wanted).abs().max()) < TOLERANCE
        block = "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        llm.model.get_submodule(f"model.layers.1.{block}.{module}").bias = None
        assert float((llm.logits(ids) - wanted).abs().max()) > FACTOR * TOLERANCE


def test_gguf_q_and_k_without_the_reordering_are_seen(tmp_path: Path) -> None:
    """A tool that skips the converter's reordering makes a file whose text is fluent nonsense."""
    model = save_checkpoint(tmp_path, llama_config())
    contents = llama_contents(model)
    state = model.state_dict()
    for layer in range(3):
        for part in "qk":
            rows = state[f"model.layers.{layer}.self_attn.{part}_proj.weight"].numpy()
            assert not (contents.tensors[f"blk.{layer}.attn_{part}.weight"] == rows).all()
            contents.tensors[f"blk.{layer}.attn_{part}.weight"] = rows
    (path,) = write(tmp_path / "model.gguf", contents)
    assert difference(path, model) > FACTOR * TOLERANCE


@pytest.mark.parametrize(
    ("pattern", "swapped"), [("attn_k", "attn_v"), ("ffn_gate", "ffn_up"), ("attn_norm", "ffn_norm")]
)
def test_swapped_names_are_seen(files: Files, monkeypatch: pytest.MonkeyPatch, pattern: str, swapped: str) -> None:
    paths, model = files()
    resolve = GGUF.resolve

    def wrong(name: str) -> Any:
        other = {f".{pattern}.": f".{swapped}.", f".{swapped}.": f".{pattern}."}
        found = next((key for key in other if key in name), None)
        return resolve(name if found is None else name.replace(found, other[found]))

    assert difference(paths["gguf"], model) < TOLERANCE
    monkeypatch.setattr(GGUF, "resolve", wrong)
    assert difference(paths["gguf"], model) > FACTOR * TOLERANCE


def test_a_half_precision_cache_is_seen(files: Files) -> None:
    """The cache's type matters in these comparisons: float16 alone is 10 times the tolerance."""
    paths, model = files()
    ids = sample_ids(LENGTH)
    with LLM.load(paths["hf"], device="cpu", dtype="float32", cache_dtype="float16") as llm:
        assert float((llm.logits(ids) - checkpoints.logits(model, ids)).abs().max()) > 10 * TOLERANCE


@pytest.mark.parametrize("wrong", ["gpt-2", "smollm", "deepseek-llm", "qwen2"])
def test_a_wrong_pre_tokenizer_is_seen(files: Files, wrong: str) -> None:
    text = "12345 1234567 the theory\n\n\n  of 2024, isn't 3.14159"
    paths, _ = files()
    with LlamaCpp(paths["gguf"], vocab_only=True) as model:
        wanted = model.tokenize(text)
    with LLM.load(paths["gguf"], device="cpu") as llm, LLM.load(paths["hf"], device="cpu") as other:
        assert llm.tokenizer.encode(text) == wanted
        assert other.tokenizer.encode(text) == wanted
    with LLM.load(paths["gguf"], device="cpu", overrides={"tokenizer.ggml.pre": wrong}) as llm:
        assert llm.tokenizer.encode(text) != wanted


def test_one_position_off_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation is relative, so a constant shift changes nothing; a chunk that starts counting anew does."""
    paths, model = files()
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(model, ids)
    with LLM.load(paths["hf"], device="cpu", dtype="float32", cache_dtype="float32") as llm:
        embedding = llm.model.get_submodule("model.rotary_emb")
        forward = type(embedding).forward
        monkeypatch.setattr(type(embedding), "forward", lambda self, positions: forward(self, positions + 17))
        assert float((llm.logits(ids) - wanted).abs().max()) < TOLERANCE
        monkeypatch.setattr(
            type(embedding), "forward", lambda self, positions: forward(self, torch.where(positions < 50, positions, 0))
        )
        assert float((llm.logits(ids) - wanted).abs().max()) > FACTOR * TOLERANCE
