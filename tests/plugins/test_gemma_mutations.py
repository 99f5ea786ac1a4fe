"""What makes a Gemma silently wrong, done on purpose: each mistake must move the result far past the tolerance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from oracle import checkpoints
from oracle.checkpoints import sample_ids
from oracle.gemma_checkpoints import WINDOW, save_gemma
from oracle.gemma_gguf import gemma_contents
from oracle.gguf_writer import write
from zoo import LLM
from zoo_gemma.config import GLOBAL, LOCAL, Gemma2Config, Gemma3Config, GemmaConfig
from zoo_gemma.weights import GGUF, GGUF_GEMMA1

TOLERANCE = 1e-4
FACTOR = 100
LENGTH = 100
CLASSES = {"gemma1": GemmaConfig, "gemma2": Gemma2Config, "gemma3": Gemma3Config}

Files = Callable[[str], tuple[dict[str, Path], PreTrainedModel]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Both formats of a random model, each written once."""
    known: dict[str, tuple[dict[str, Path], PreTrainedModel]] = {}

    def make(variant: str) -> tuple[dict[str, Path], PreTrainedModel]:
        if variant not in known:
            directory = tmp_path_factory.mktemp("checkpoint")
            model = save_gemma(directory, variant)
            (gguf,) = write(tmp_path_factory.mktemp("gguf") / "model.gguf", gemma_contents(model))
            known[variant] = {"hf": directory, "gguf": gguf}, model
        return known[variant]

    return make


def difference(path: Path, model: PreTrainedModel, length: int = LENGTH, **options: Any) -> float:
    ids = sample_ids(length)
    options = {"device": "cpu", "dtype": "float32", "cache_dtype": "float32", **options}
    with LLM.load(path, **options) as llm:
        return float((llm.logits(ids) - checkpoints.logits(model, ids)).abs().max())


Change = Callable[[GemmaConfig], dict[str, Any]]


def mistake(monkeypatch: pytest.MonkeyPatch, variant: str, form: str, change: Change) -> None:
    """Let the configuration be read wrongly."""
    kind = CLASSES[variant.split()[0]]
    read = getattr(kind, f"from_{form}")

    def wrong(source: Any) -> GemmaConfig:
        config: GemmaConfig = read(source)
        return config.model_copy(update=change(config))

    monkeypatch.setattr(kind, f"from_{form}", staticmethod(wrong))


def one_rope(kind: str) -> Change:
    """All layers rotated as those of one kind."""
    return lambda config: {"rope": {LOCAL: config.rope[kind], GLOBAL: config.rope[kind]}}


def local_factor(config: GemmaConfig) -> dict[str, Any]:
    rope = config.rope[LOCAL]
    return {"rope": {**config.rope, LOCAL: dataclasses.replace(rope, type="linear", factor=8.0)}}


def no_factor(config: GemmaConfig) -> dict[str, Any]:
    return {"rope": {**config.rope, GLOBAL: dataclasses.replace(config.rope[GLOBAL], type="default", factor=1.0)}}


def pairs(config: GemmaConfig) -> dict[str, Any]:
    return {"rope": {kind: dataclasses.replace(rope, interleaved=True) for kind, rope in config.rope.items()}}


def shifted_layers(config: GemmaConfig) -> dict[str, Any]:
    """Global layers first instead of last."""
    return {"layer_types": (*config.layer_types[1:], config.layer_types[0])}


def fixed(**values: Any) -> Change:
    return lambda config: values


MISTAKES: dict[str, tuple[str, Change]] = {
    "one theta, the global": ("gemma3", one_rope(GLOBAL)),
    "one theta, the local": ("gemma3", one_rope(LOCAL)),
    "factor on local layers": ("gemma3 linear", local_factor),
    "one rotation with its factor": ("gemma3 linear", one_rope(GLOBAL)),
    "factor dropped": ("gemma3 linear", no_factor),
    "capped scores dropped": ("gemma2", fixed(attn_logit_softcapping=None)),
    "capped logits dropped": ("gemma2", fixed(final_logit_softcapping=None)),
    "capped logits dropped, as published": ("gemma2 as published", fixed(final_logit_softcapping=None)),
    "capped logits of Gemma 3 dropped": ("gemma3 capped", fixed(final_logit_softcapping=None)),
    "caps swapped": ("gemma2", fixed(attn_logit_softcapping=6.0, final_logit_softcapping=4.0)),
    "window one too long": ("gemma2", fixed(sliding_window=WINDOW + 1)),
    "window one too short": ("gemma2", fixed(sliding_window=WINDOW - 1)),
    "window one too long in Gemma 3": ("gemma3", fixed(sliding_window=WINDOW + 1)),
    "window one too short in Gemma 3": ("gemma3", fixed(sliding_window=WINDOW - 1)),
    "no window": ("gemma2", lambda config: {"layer_types": (GLOBAL,) * config.num_hidden_layers}),
    "no global layer": ("gemma3", lambda config: {"layer_types": (LOCAL,) * config.num_hidden_layers}),
    "odd layers local": ("gemma2", shifted_layers),
    "global layer one earlier": ("gemma3", shifted_layers),
    "scale by another size": ("gemma2", fixed(query_pre_attn_scalar=16)),
    "scale by another size in Gemma 3": ("gemma3", fixed(query_pre_attn_scalar=16)),
    "pairs side by side": ("gemma1", pairs),
    "pairs side by side in Gemma 3": ("gemma3", pairs),
    "epsilon": ("gemma1 eps", fixed(rms_norm_eps=1e-6)),
}


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_configuration_read_wrongly_is_seen(
    files: Files, monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    variant, change = MISTAKES[name]
    paths, model = files(variant)
    assert difference(paths[form], model) < TOLERANCE
    mistake(monkeypatch, variant, form, change)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


@pytest.mark.parametrize("variant", CLASSES)
@pytest.mark.parametrize(("form", "offset"), [("hf", 0.0), ("hf", 2.0), ("gguf", 1.0)])
def test_one_added_to_norms_twice_or_never_is_seen(
    files: Files, monkeypatch: pytest.MonkeyPatch, variant: str, form: str, offset: float
) -> None:
    paths, model = files(variant)
    mistake(monkeypatch, variant, form, fixed(norm_offset=offset))
    assert difference(paths[form], model) > FACTOR * TOLERANCE


@pytest.mark.parametrize(
    "norm",
    [
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
        "self_attn.q_norm", "self_attn.k_norm",
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_one_missed_in_a_single_norm_is_seen(files: Files, form: str, norm: str) -> None:
    paths, model = files("gemma3")
    ids = sample_ids(LENGTH)
    with LLM.load(paths[form], device="cpu", dtype="float32", cache_dtype="float32") as llm:
        module: Any = llm.model.get_submodule(f"model.layers.2.{norm}")  # type: ignore[attr-defined]
        module.offset = 0.0 if form == "hf" else 1.0
        assert float((llm.logits(ids) - checkpoints.logits(model, ids)).abs().max()) > FACTOR * TOLERANCE


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("variant", CLASSES)
def test_the_scale_of_the_embedding_is_seen(files: Files, variant: str, form: str) -> None:
    """Left out, one percent off, or taken into the tied head too."""
    paths, model = files(variant)
    ids = sample_ids(LENGTH)
    wanted = checkpoints.logits(model, ids)
    with LLM.load(paths[form], device="cpu", dtype="float32", cache_dtype="float32") as llm:
        embedding: Any = llm.model.get_submodule("model.embed_tokens")  # type: ignore[attr-defined]
        assert embedding.scale == 8
        for scale in (1.0, 8 * 1.01):
            embedding.scale = scale
            assert float((llm.logits(ids) - wanted).abs().max()) > FACTOR * TOLERANCE
        embedding.scale = 8
        embedding.weight = torch.nn.Parameter(embedding.weight * 8, requires_grad=False)
        assert float((llm.logits(ids) - wanted).abs().max()) > FACTOR * TOLERANCE


def test_a_scale_that_is_not_rounded_is_seen_in_bfloat16(tmp_path: Path) -> None:
    model = save_gemma(tmp_path, "gemma1", hidden_size=40)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    ids = sample_ids(LENGTH)
    with torch.no_grad():
        wanted = half(torch.tensor([ids]), output_hidden_states=True).hidden_states[0][0]
    with LLM.load(tmp_path, device="cpu", dtype="bfloat16") as llm:
        embedding: Any = llm.model.get_submodule("model.embed_tokens")  # type: ignore[attr-defined]
        assert embedding.scale == 6.3125
        embedding.scale = 40**0.5
        (found,) = llm.hidden_states(ids, layers=[0])
    assert (found != wanted).float().mean() > 0.05


def test_another_activation_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo_gemma import model as gemma

    paths, model = files("gemma1")
    glu = gemma.glu
    monkeypatch.setattr(gemma, "glu", lambda *args, act: glu(*args, act="silu"))
    assert difference(paths["hf"], model) > FACTOR * TOLERANCE


@pytest.mark.parametrize(
    ("variant", "one", "other"),
    [
        ("gemma3", "post_attention_norm", "ffn_norm"),
        ("gemma3", "post_attention_norm", "post_ffw_norm"),
        ("gemma3", "attn_q_norm", "attn_k_norm"),
        ("gemma2", "ffn_norm", "post_ffw_norm"),
        ("gemma2", "ffn_gate", "ffn_up"),
        ("gemma1", "attn_norm", "ffn_norm"),
        ("gemma1", "attn_k", "attn_v"),
    ],
)
def test_swapped_names_are_seen(
    files: Files, monkeypatch: pytest.MonkeyPatch, variant: str, one: str, other: str
) -> None:
    paths, model = files(variant)
    names = GGUF_GEMMA1 if variant == "gemma1" else GGUF
    resolve = names.resolve

    def wrong(name: str) -> Any:
        swapped = {f".{one}.": f".{other}.", f".{other}.": f".{one}."}
        found = next((key for key in swapped if key in name), None)
        return resolve(name if found is None else name.replace(found, swapped[found]))

    assert difference(paths["gguf"], model) < TOLERANCE
    monkeypatch.setattr(names, "resolve", wrong)
    assert difference(paths["gguf"], model) > FACTOR * TOLERANCE


@pytest.mark.parametrize("variant", CLASSES)
def test_a_file_whose_norms_lack_the_one_is_seen(tmp_path: Path, variant: str) -> None:
    """A tool that skips the converter's addition makes a file that nobody can tell from a right one by its headers."""
    model = save_gemma(tmp_path, variant)
    contents = gemma_contents(model)
    for name, value in contents.tensors.items():
        if value.ndim == 1:
            contents.tensors[name] = (value - 1).astype(np.float32)
    (path,) = write(tmp_path / "model.gguf", contents)
    assert difference(path, model) > FACTOR * TOLERANCE


def test_missing_keys_are_not_filled_with_the_global_values(files: Files) -> None:
    """What a file lacks has defaults of its own; setting them to what other layers have is a mistake that shows."""
    paths, model = files("gemma3")
    assert difference(paths["gguf"], model) < TOLERANCE
    for key, value in {"rope.freq_base_swa": 1000000.0, "attention.sliding_window_pattern": 2}.items():
        assert difference(paths["gguf"], model, overrides={f".{key}": value}) > FACTOR * TOLERANCE
    right = {".rope.freq_base_swa": 10000.0, ".attention.sliding_window_pattern": 6}
    assert difference(paths["gguf"], model, overrides=right) < TOLERANCE


def test_the_window_is_felt_past_its_end_only(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, model = files("gemma2")
    mistake(monkeypatch, "gemma2", "hf", lambda config: {"layer_types": (GLOBAL,) * config.num_hidden_layers})
    assert difference(paths["hf"], model, length=WINDOW) < TOLERANCE
    assert difference(paths["hf"], model, length=WINDOW + 1) > FACTOR * TOLERANCE
