"""What makes a Phi silently wrong, done on purpose: each mistake must move the result far past the tolerance."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import zoo_phi.config
from oracle import checkpoints
from oracle.checkpoints import sample_ids, save_checkpoint
from oracle.gguf_writer import Contents, write
from oracle.phi_checkpoints import CONTEXT, phi2_config, phi3_config, phi3_long_config, phi4_mini_config, phimoe_config
from oracle.phi_gguf import phi_contents
from zoo import LLM
from zoo.kernels import Routing
from zoo.nn import RopeParameters, Router
from zoo.weights import Rows
from zoo_phi import weights

TOLERANCE = 1e-4
FACTOR = 100
LENGTH = 80

CONFIGS: dict[str, Callable[[], Any]] = {
    "phi2": phi2_config,
    "phi3": phi3_config,
    "window": lambda: phi3_config(sliding_window=17),
    "eps": lambda: phi3_config(rms_norm_eps=0.1),
    "phi2 eps": lambda: phi2_config(layer_norm_eps=0.3),
    "longrope": phi3_long_config,
    "phi4-mini": phi4_mini_config,
    "phimoe": lambda: phimoe_config(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
}
Files = Callable[[str], tuple[dict[str, Path], PreTrainedModel, Contents]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Both formats of one random model, and what the GGUF holds."""

    @functools.cache
    def make(name: str) -> tuple[dict[str, Path], PreTrainedModel, Contents]:
        directory = tmp_path_factory.mktemp("checkpoint")
        model = save_checkpoint(directory, CONFIGS[name]())
        contents = phi_contents(model)
        (gguf,) = write(tmp_path_factory.mktemp("gguf") / "model.gguf", contents)
        return {"hf": directory, "gguf": gguf}, model, contents

    return make


def difference(path: Path, model: PreTrainedModel, change: Callable[[LLM], Any] | None = None) -> float:
    ids = sample_ids(LENGTH)
    with LLM.load(path, device="cpu", dtype="float32", cache_dtype="float32", context=CONTEXT) as llm:
        if change is not None:
            change(llm)
        return float((llm.logits(ids) - checkpoints.logits(model, ids)).abs().max())


def without_short(rope: RopeParameters) -> RopeParameters:
    assert rope.short is not None
    return rope.short


ROPE: dict[str, tuple[str, Callable[[RopeParameters], RopeParameters]]] = {
    "the short factors for the long ones": ("longrope", without_short),
    "no factors": ("longrope", lambda rope: dataclasses.replace(rope, factors=None)),
    "factors multiplied, not divided": (
        "longrope", lambda rope: dataclasses.replace(rope, factors=tuple(1 / f for f in rope.factors or ()))
    ),
    "attention factor lost": ("longrope", lambda rope: dataclasses.replace(rope, attention_factor=1.0)),
    "attention factor of YaRN": (
        "longrope", lambda rope: dataclasses.replace(rope, attention_factor=0.1 * np.log(CONTEXT / 64) + 1)
    ),
    "rows rotated as pairs": ("phi3", lambda rope: dataclasses.replace(rope, interleaved=True)),
    "theta": ("phi3", lambda rope: dataclasses.replace(rope, theta=250000.0)),
    "whole heads rotated": ("phi2", lambda rope: dataclasses.replace(rope, dim=20)),
    "too little of a head rotated": ("phi2", lambda rope: dataclasses.replace(rope, dim=6)),
    "whole heads rotated by longrope": (
        "phi4-mini", lambda rope: dataclasses.replace(rope, dim=20, factors=(*(rope.factors or ()), 1.0, 1.0))
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("mistake", ROPE)
def test_a_wrong_rotation_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch, form: str, mistake: str) -> None:
    name, wrong = ROPE[mistake]
    paths, model, _ = files(name)
    assert difference(paths[form], model) < TOLERANCE
    read = getattr(RopeParameters, f"from_{form}")
    monkeypatch.setattr(RopeParameters, f"from_{form}", staticmethod(lambda *a, **k: wrong(read(*a, **k))))
    assert difference(paths[form], model) > FACTOR * TOLERANCE


def test_factors_chosen_by_a_short_context_are_seen(files: Files) -> None:
    """The set for contexts up to the original one, in a longer one."""
    paths, model, _ = files("longrope")

    def shorten(llm: LLM) -> None:
        llm._engine.runner.cache.max_model_len = 64

    assert difference(paths["hf"], model) < TOLERANCE
    assert difference(paths["hf"], model, shorten) > FACTOR * TOLERANCE


CONFIG: dict[str, tuple[str, dict[str, Any]]] = {
    "window lost": ("window", {"sliding_window": None}),
    "window of one more": ("window", {"sliding_window": 18}),
    "window of one less": ("window", {"sliding_window": 16}),
    "epsilon": ("eps", {"norm_eps": 1e-5}),
    "epsilon of layer norms": ("phi2 eps", {"norm_eps": 1e-5}),
    "softmax of the two best": ("phimoe", {"routing": Routing(2, "softmax", normalize=True)}),
    "softmax over all": ("phimoe", {"routing": Routing(2, "softmax")}),
}


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("mistake", CONFIG)
def test_a_wrong_configuration_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch, form: str, mistake: str) -> None:
    name, changes = CONFIG[mistake]
    paths, model, _ = files(name)
    assert difference(paths[form], model) < TOLERANCE
    for kind in ("Phi2Config", "Phi3Config", "PhiMoEConfig"):
        owner = getattr(zoo_phi.config, kind)
        read = getattr(owner, f"from_{form}")
        wrong = staticmethod(lambda source, read=read: read(source).model_copy(update=changes))
        monkeypatch.setattr(owner, f"from_{form}", wrong)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


def test_a_threshold_of_sparsemixer_is_seen(files: Files) -> None:
    """Seldom do two experts come within 2 % of each other; ten times as far they do."""
    paths, model, _ = files("phimoe")

    def loosen(llm: LLM) -> None:
        for router in (module for module in llm.model.modules() if isinstance(module, Router)):
            router.routing = dataclasses.replace(router.routing, jitter=0.1)

    assert difference(paths["hf"], model, loosen) > FACTOR * TOLERANCE


BIASES = {
    "phi2": (
        *(f"layers.1.self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "dense")),
        *("layers.1.mlp.fc1", "layers.1.mlp.fc2", "layers.1.input_layernorm", "final_layernorm", "lm_head"),
    ),
    "phimoe": (
        *(f"layers.1.self_attn.{part}_proj" for part in "qkvo"),
        *("layers.1.input_layernorm", "layers.1.post_attention_layernorm", "norm", "lm_head"),
    ),
}


@pytest.mark.parametrize(("name", "module"), [(name, module) for name in BIASES for module in BIASES[name]])
def test_a_lost_bias_is_seen(files: Files, name: str, module: str) -> None:
    paths, model, _ = files(name)

    def lose(llm: LLM) -> None:
        place = llm.model.get_submodule(module if module == "lm_head" else f"model.{module}")
        place.set_weight("bias", torch.zeros_like(place.bias))

    assert difference(paths["gguf"], model) < TOLERANCE
    assert difference(paths["gguf"], model, lose) > FACTOR * TOLERANCE


ROWS = {
    "v first": ("gguf", "blk.0.attn_qkv.weight", ("v", "k", "q")),
    "k and v": ("gguf", "blk.0.attn_qkv.weight", ("q", "v", "k")),
    "k and v of HF": ("hf", "model.layers.0.self_attn.qkv_proj.weight", ("q", "v", "k")),
}


@pytest.mark.parametrize("mistake", ROWS)
def test_another_order_of_fused_rows_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    form, tensor, order = ROWS[mistake]
    table = weights.PHI3_HF if form == "hf" else weights.PHI3_GGUF
    resolve = table.resolve

    def wrong(name: str) -> Any:
        target, expert = resolve(name)
        if name == tensor:
            target = Rows(*(f"model.layers.0.self_attn.{part}_proj.weight" for part in order))
        return target, expert

    paths, model, _ = files("phi3")
    assert difference(paths[form], model) < TOLERANCE
    monkeypatch.setattr(table, "resolve", wrong)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_gate_and_up_swapped_are_seen(files: Files, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    table = weights.PHI3_HF if form == "hf" else weights.PHI3_GGUF
    resolve = table.resolve

    def wrong(name: str) -> Any:
        target, expert = resolve(name)
        if isinstance(target, Rows) and "mlp" in target.targets[0]:
            target = Rows(*reversed(target.targets))
        return target, expert

    paths, model, _ = files("phi3")
    monkeypatch.setattr(table, "resolve", wrong)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


@pytest.mark.parametrize(("one", "other"), [("w1", "w3"), ("gate", "up")])
def test_swapped_expert_matrices_are_seen(files: Files, monkeypatch: pytest.MonkeyPatch, one: str, other: str) -> None:
    table, form = (weights.PHIMOE_HF, "hf") if one == "w1" else (weights.PHIMOE_GGUF, "gguf")
    before, behind = (".", ".weight") if one == "w1" else ("ffn_", "_exps.weight")
    resolve = table.resolve

    def wrong(name: str) -> Any:
        for a, b in ((one, other), (other, one)):
            if name.endswith(f"{before}{a}{behind}"):
                return resolve(name.replace(f"{before}{a}{behind}", f"{before}{b}{behind}"))
        return resolve(name)

    paths, model, _ = files("phimoe")
    assert difference(paths[form], model) < TOLERANCE
    monkeypatch.setattr(table, "resolve", wrong)
    assert difference(paths[form], model) > FACTOR * TOLERANCE


def test_branches_one_after_the_other_are_seen(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phi-2's MLP reads the normed input of the layer, not what attention made of it."""
    from zoo_phi import phi2

    def in_turn(self: Any, delta: Any, residual: Any, rotary: Any, batch: Any, kv: Any) -> Any:
        hidden_states, residual = self.input_layernorm(residual, add=delta)
        attended = self.self_attn(hidden_states, rotary, batch, kv)
        hidden_states, residual = self.input_layernorm(residual, add=attended)
        return self.mlp(hidden_states), residual

    paths, model, _ = files("phi2")
    assert difference(paths["hf"], model) < TOLERANCE
    monkeypatch.setattr(phi2.DecoderLayer, "forward", in_turn)
    assert difference(paths["hf"], model) > FACTOR * TOLERANCE
