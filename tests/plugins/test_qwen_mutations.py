"""What makes a Qwen silently wrong, done on purpose: each mistake must move the result far past the tolerance."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import zoo_qwen.model
from oracle import checkpoints
from oracle.checkpoints import sample_ids
from oracle.gguf_writer import pair_rows, write
from oracle.llamacpp import LlamaCpp
from oracle.qwen_checkpoints import save_qwen
from oracle.qwen_gguf import qwen_contents
from plugins.parity import TOLERANCE, loaded, zoo_logits
from zoo import LLM
from zoo.nn import RopeParameters
from zoo_qwen.config import QwenConfig
from zoo_qwen.weights import GGUF

FACTOR = 100
LENGTH = 100

Files = Callable[[str], tuple[dict[str, Path], PreTrainedModel]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Both formats of one random model, written once."""
    known: dict[str, tuple[dict[str, Path], PreTrainedModel]] = {}

    def make(variant: str) -> tuple[dict[str, Path], PreTrainedModel]:
        if variant not in known:
            directory = tmp_path_factory.mktemp("checkpoint")
            model = save_qwen(directory, variant)
            (gguf,) = write(tmp_path_factory.mktemp("gguf") / "model.gguf", qwen_contents(model))
            known[variant] = {"hf": directory, "gguf": gguf}, model
        return known[variant]

    return make


def difference(path: Path, model: PreTrainedModel, **options: Any) -> float:
    ids = sample_ids(LENGTH)
    return float((zoo_logits(path, ids, **options) - checkpoints.logits(model, ids)).abs().max())


def change_rope(monkeypatch: pytest.MonkeyPatch, form: str, **changes: Any) -> None:
    """Let the parameters of every rotary embedding be read wrongly."""
    read = getattr(RopeParameters, f"from_{form}")

    def wrong(*args: Any, **kwargs: Any) -> RopeParameters:
        return dataclasses.replace(read(*args, **kwargs), **changes)

    monkeypatch.setattr(RopeParameters, f"from_{form}", staticmethod(wrong))


def change_config(monkeypatch: pytest.MonkeyPatch, form: str, change: Callable[[QwenConfig], dict[str, Any]]) -> None:
    """Let the configuration be read wrongly."""
    read = getattr(QwenConfig, f"from_{form}")

    def wrong(source: Any) -> QwenConfig:
        right: QwenConfig = read(source)
        return right.model_copy(update=change(right))

    monkeypatch.setattr(QwenConfig, f"from_{form}", staticmethod(wrong))


ROPE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gguf rows rotated as pairs": ("qwen3", "gguf", {"interleaved": True}),
    "hf rows rotated as pairs": ("qwen2", "hf", {"interleaved": True}),
    "gguf yarn dropped": ("qwen3 yarn", "gguf", {"type": "default"}),
    "hf yarn dropped": ("qwen2 yarn", "hf", {"type": "default"}),
    "hf yarn taken for linear": ("qwen2 yarn", "hf", {"type": "linear"}),
    "hf yarn without its temperature": ("qwen2 yarn", "hf", {"attention_factor": 1.0}),
    "gguf yarn from another context": ("qwen3 yarn", "gguf", {"original_max_position_embeddings": 256}),
    "hf theta": ("qwen2 theta", "hf", {"theta": 10000.0}),
    "gguf theta": ("qwen2 theta", "gguf", {"theta": 10000.0}),
}


@pytest.mark.parametrize("mistake", ROPE)
def test_a_wrong_rotation_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    variant, form, wrong = ROPE[mistake]
    paths, model = files(variant)
    assert difference(paths[form], model) < TOLERANCE
    change_rope(monkeypatch, form, **wrong)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


CONFIG: dict[str, tuple[str, str, Callable[[QwenConfig], dict[str, Any]]]] = {
    "hf qwen3-moe weights not normalised": (
        "qwen3 moe", "hf", lambda c: {"routing": dataclasses.replace(c.routing, normalize=False)}
    ),
    "gguf qwen3-moe weights not normalised": (
        "qwen3 moe", "gguf", lambda c: {"routing": dataclasses.replace(c.routing, normalize=False)}
    ),
    "hf qwen2-moe weights normalised": (
        "qwen2 moe", "hf", lambda c: {"routing": dataclasses.replace(c.routing, normalize=True)}
    ),
    "gguf qwen2-moe weights normalised": (
        "qwen2 moe", "gguf", lambda c: {"routing": dataclasses.replace(c.routing, normalize=True)}
    ),
    "one expert fewer": ("qwen3 moe", "hf", lambda c: {"routing": dataclasses.replace(c.routing, top_k=2)}),
    "eps": ("qwen3 eps", "gguf", lambda _: {"rms_norm_eps": 1e-6}),
    "window ignored": ("qwen2 window from layer 1", "hf", lambda _: {"windows": (None,) * 3}),
    "window in the wrong layers": ("qwen2 window from layer 1", "hf", lambda c: {"windows": c.windows[::-1]}),
    "window one key too wide": ("qwen2 window from layer 1", "hf", lambda _: {"windows": (None, 25, 25)}),
    "a window that is switched off": ("qwen2", "hf", lambda _: {"windows": (24,) * 3}),
}  # fmt: skip


@pytest.mark.parametrize("mistake", CONFIG)
def test_a_wrong_configuration_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    variant, form, change = CONFIG[mistake]
    paths, model = files(variant)
    assert difference(paths[form], model) < TOLERANCE
    change_config(monkeypatch, form, change)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize(
    ("variant", "module"),
    [("qwen2", "q_proj"), ("qwen2", "k_proj"), ("qwen2 moe", "v_proj"), ("qwen3 biases", "o_proj")],
)
def test_a_lost_bias_is_seen(files: Files, form: str, variant: str, module: str) -> None:
    """A bias of the keys moves the scores of a query by as much for every key, but for the rotation."""
    paths, model = files(variant)
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(model, ids)
    with loaded(paths[form]) as llm:
        assert float((llm.logits(ids) - wanted).abs().max()) < TOLERANCE
        llm.model.get_submodule(f"model.layers.1.self_attn.{module}").bias = None
        assert float((llm.logits(ids) - wanted).abs().max()) > FACTOR * TOLERANCE


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("norm", ["q_norm", "k_norm"])
def test_a_lost_norm_of_heads_is_seen(files: Files, form: str, norm: str) -> None:
    paths, model = files("qwen3")
    ids = sample_ids(LENGTH)
    with loaded(paths[form]) as llm:
        setattr(llm.model.get_submodule("model.layers.1.self_attn"), norm, torch.nn.Identity())
        assert float((llm.logits(ids) - checkpoints.logits(model, ids)).abs().max()) > FACTOR * TOLERANCE


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_norms_after_the_rotation_are_seen(files: Files, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Rotation keeps a head's length, so only the norm's weight tells which came first."""
    paths, model = files("qwen3")
    from zoo.kernels.rotary.reference import rotate

    attend = zoo_qwen.model.attend

    class Late(zoo_qwen.model.NormedAttention):
        def heads(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return zoo_qwen.model.Attention.heads(self, hidden_states)

        def forward(self, hidden_states: Tensor, rotary: Any, batch: Any, kv: Any) -> Tensor:
            q, k, v = self.heads(hidden_states)
            q, k = self.q_norm(rotate(q, rotary)), self.k_norm(rotate(k, rotary))
            return self.o_proj(attend(q, k, v, None, batch, kv, scale=self.scale))

    monkeypatch.setattr(zoo_qwen.model, "NormedAttention", Late)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


GATES: dict[str, Callable[..., Tensor]] = {
    "left out": lambda x, by: x,
    "not squashed": lambda x, by: x * by,
    "squashed as silu": lambda x, by: x * torch.nn.functional.silu(by),
    "shared expert left out": lambda x, by: x * 0,
}


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("mistake", GATES)
def test_a_wrong_gate_of_the_shared_expert_is_seen(
    files: Files, monkeypatch: pytest.MonkeyPatch, form: str, mistake: str
) -> None:
    paths, model = files("qwen2 moe")
    assert difference(paths[form], model) < TOLERANCE
    monkeypatch.setattr(zoo_qwen.model, "gate", GATES[mistake])
    assert difference(paths[form], model) > FACTOR * TOLERANCE


@pytest.mark.parametrize(
    ("variant", "name", "swapped"),
    [
        ("qwen2", "attn_norm", "ffn_norm"), ("qwen2", "ffn_gate", "ffn_up"),
        ("qwen3", "attn_q_norm", "attn_k_norm"), ("qwen2 moe", "ffn_gate_exps", "ffn_up_exps"),
        ("qwen2 moe", "ffn_gate_shexp", "ffn_up_shexp"),
    ],
)  # fmt: skip
def test_swapped_names_are_seen(
    files: Files, monkeypatch: pytest.MonkeyPatch, variant: str, name: str, swapped: str
) -> None:
    paths, model = files(variant)
    resolve = GGUF.resolve
    other = {f".{name}.": f".{swapped}.", f".{swapped}.": f".{name}."}

    def wrong(tensor: str) -> Any:
        found = next((key for key in other if key in tensor), None)
        return resolve(tensor if found is None else tensor.replace(found, other[found]))

    monkeypatch.setattr(GGUF, "resolve", wrong)
    assert difference(paths["gguf"], model) > FACTOR * TOLERANCE


def test_rows_that_a_converter_reordered_are_seen(files: Files, tmp_path: Path) -> None:
    """As it does for Llama; Qwen's rows stay as they are."""
    _, model = files("qwen3")
    contents = qwen_contents(model)
    for layer in range(3):
        for part, heads in (("q", 4), ("k", 2)):
            name = f"blk.{layer}.attn_{part}.weight"
            contents.tensors[name] = pair_rows(contents.tensors[name], heads)
    (path,) = write(tmp_path / "model.gguf", contents)
    assert difference(path, model) > FACTOR * TOLERANCE


# --- Text ---

TEXT = "12345 1234567 the theory\n\n\n  of 2024, isn't 3.14159\n\n12, then, other :every .\n"


@pytest.mark.parametrize("wrong", ["gpt-2", "smollm", "llama-bpe", "deepseek-v3"])
def test_a_wrong_pre_tokenizer_is_seen(files: Files, wrong: str) -> None:
    paths, _ = files("qwen2")
    with LlamaCpp(paths["gguf"], vocab_only=True) as model:
        wanted = model.tokenize(TEXT)
    with LLM.load(paths["gguf"], device="cpu") as llm:
        assert llm.tokenizer.encode(TEXT) == wanted
    with LLM.load(paths["gguf"], device="cpu", overrides={"tokenizer.ggml.pre": wrong}) as llm:
        assert llm.tokenizer.encode(TEXT) != wanted


def test_text_that_is_not_composed_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen's own tokenizer composes; llama.cpp does not, and so has other ids."""
    paths, _ = files("qwen2")
    text = unicodedata.normalize("NFD", "Crème brûlée à la façon d'Élodie")
    with LlamaCpp(paths["gguf"], vocab_only=True) as model:
        theirs, composed = model.tokenize(text), model.tokenize(unicodedata.normalize("NFC", text))
    assert theirs != composed
    with LLM.load(paths["gguf"], device="cpu") as llm:
        assert llm.tokenizer.encode(text) == composed
        monkeypatch.setattr(unicodedata, "normalize", lambda form, value: value)
        assert llm.tokenizer.encode(text) == theirs
