"""What makes a DeepSeek silently wrong, done on purpose: each mistake must move the logits far past the tolerance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import zoo_deepseek.model
from oracle import checkpoints
from oracle.checkpoints import sample_ids
from oracle.deepseek_checkpoints import fp8_config, fp8_tensors, rewrite, save_deepseek, tensors_of, with_weights
from oracle.deepseek_gguf import deepseek_contents
from oracle.gguf_writer import write
from plugins.deepseek_tools import LENGTH, TOLERANCE, loaded
from zoo import kernels
from zoo.kernels.route import reference as route_reference
from zoo.nn import RopeParameters
from zoo.weights import Rows
from zoo_deepseek.config import DeepseekConfig
from zoo_deepseek.weights import GGUF, HF

FACTOR = 100
IDS = sample_ids(LENGTH)

Files = Callable[[str], tuple[dict[str, Path], PreTrainedModel]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Both formats of a variant, each written once and shown to be read rightly."""
    known: dict[str, tuple[dict[str, Path], PreTrainedModel]] = {}

    def make(variant: str) -> tuple[dict[str, Path], PreTrainedModel]:
        if variant not in known:
            directory = tmp_path_factory.mktemp(variant.replace(" ", "-"))
            model = save_deepseek(directory, variant)
            paths = {"hf": directory}
            for layout in ("split", "fused"):
                (paths[layout],) = write(directory / f"{layout}.gguf", deepseek_contents(model, layout))
            for path in paths.values():
                assert difference(path, model) < TOLERANCE
            known[variant] = paths, model
        return known[variant]

    return make


def difference(path: Path, model: PreTrainedModel) -> float:
    if path.is_dir():
        path = path / "model.safetensors"
    with loaded(path) as llm:
        return float((llm.logits(IDS) - checkpoints.logits(model, IDS)).abs().max())


def assert_seen(path: Path, model: PreTrainedModel) -> None:
    assert difference(path, model) > FACTOR * TOLERANCE


def change_config(monkeypatch: pytest.MonkeyPatch, change: Callable[[DeepseekConfig], dict[str, Any]]) -> None:
    """Let the configuration of either format be read wrongly."""
    for form in ("from_hf", "from_gguf"):
        read = getattr(DeepseekConfig, form)

        def wrong(source: Any, read: Any = read) -> DeepseekConfig:
            config: DeepseekConfig = read(source)
            return config.model_copy(update=change(config))

        monkeypatch.setattr(DeepseekConfig, form, staticmethod(wrong))


def routing(**changes: Any) -> Callable[[DeepseekConfig], dict[str, Any]]:
    return lambda config: {"routing": dataclasses.replace(config.routing, **changes)}


def rope(**changes: Any) -> Callable[[DeepseekConfig], dict[str, Any]]:
    return lambda config: {"rope": dataclasses.replace(config.rope, **changes)}


def plain_scale(config: DeepseekConfig) -> dict[str, Any]:
    return {"softmax_scale": (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5}


def scale_of_m(config: DeepseekConfig) -> dict[str, Any]:
    return {"softmax_scale": (config.softmax_scale * plain_scale(config)["softmax_scale"]) ** 0.5}


def rank_scale(config: DeepseekConfig) -> dict[str, Any]:
    """The width of what the absorbed form multiplies, in the place of the keys' width."""
    factor = config.softmax_scale / plain_scale(config)["softmax_scale"]
    return {"softmax_scale": (config.kv_lora_rank + config.qk_rope_head_dim) ** -0.5 * factor}


MISTAKES: dict[str, tuple[str, Callable[[DeepseekConfig], dict[str, Any]]]] = {
    "rope rows rotated as halves": ("v3", rope(interleaved=False)),
    "rope rows rotated as halves, V2": ("v2", rope(interleaved=False)),
    "m squared missing": ("v3", plain_scale),
    "m squared missing, V2-Lite": ("v2-lite", plain_scale),
    "m once, not squared": ("v3", scale_of_m),
    "m of V2 in V3": ("v3", lambda c: {"softmax_scale": plain_scale(c)["softmax_scale"] * 1.2608**2}),
    "softmax scale by the rank": ("v3", rank_scale),
    "magnitude of generic YaRN on cos and sin": ("v3", rope(attention_factor=1.368888)),
    "YaRN dropped": ("v3", rope(type="default")),
    "YaRN factor": ("v3", rope(factor=4.0)),
    "YaRN original context": ("v3", rope(original_max_position_embeddings=4096)),
    "theta": ("v3", rope(theta=500000.0)),
    "V2's factor missing": ("v2", routing(scale=1.0)),
    "V3's factor missing": ("v3", routing(scale=1.0)),
    "V3's weights not normalised": ("v3", routing(normalize=False)),
    "V2's weights normalised": ("v2", routing(normalize=True)),
    "softmax for sigmoid": ("v3", routing(scoring="softmax")),
    "sigmoid for softmax": ("v2-lite", routing(scoring="sigmoid")),
    "groups missing, V2": ("v2", routing(num_groups=1, top_groups=1)),
    "groups missing, V3": ("v3", routing(num_groups=1, top_groups=1)),
    "V3's group rule in V2": ("v2", routing(group_score="top2")),
    "V2's group rule in V3": ("v3", routing(group_score="max")),
    "one group fewer": ("v3", routing(top_groups=1)),
    "one expert fewer": ("v3", routing(top_k=2)),
    "one expert more": ("v2-lite", routing(top_k=4)),
    "epsilon": ("v3 eps", lambda config: {"rms_norm_eps": 1e-6}),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_configuration_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    variant, change = MISTAKES[mistake]
    paths, model = files(variant)
    change_config(monkeypatch, change)
    for form in ("hf", "split"):
        assert_seen(paths[form], model)


def test_the_epsilon_of_the_low_rank_norms_is_not_that_of_the_model(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, model = files("v3 eps")
    monkeypatch.setattr(zoo_deepseek.model, "_LORA_EPS", 0.1)
    assert_seen(paths["hf"], model)


def test_a_mask_of_0_is_wrong_where_biased_scores_are_negative(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, model = files("v3 six experts")

    def zeros(ranking: torch.Tensor, routing: Any) -> torch.Tensor:
        masked = mask_groups(ranking, routing)
        return masked.masked_fill(masked == float("-inf"), 0.0)

    mask_groups = route_reference._mask_groups
    monkeypatch.setattr(route_reference, "_mask_groups", zeros)
    monkeypatch.setattr(kernels, "route", route_reference.route)
    assert_seen(paths["hf"], model)


@pytest.mark.parametrize("form", ["hf", "split"])
def test_a_lost_correction_bias_is_seen(files: Files, form: str) -> None:
    paths, model = files("v3")
    wanted = checkpoints.logits(model, IDS)
    with loaded(paths[form] / "model.safetensors" if form == "hf" else paths[form]) as llm:
        for layer in (2, 3):
            gate = llm.model.get_submodule(f"model.layers.{layer}.mlp.gate")
            del gate._parameters["e_score_correction_bias"]
            gate.e_score_correction_bias = None
        assert (llm.logits(IDS) - wanted).abs().max() > FACTOR * TOLERANCE


def test_a_correction_bias_in_the_weights_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, model = files("v3")
    route = route_reference.route

    def biased(logits: torch.Tensor, routing: Any, bias: torch.Tensor | None = None) -> Any:
        indices, _ = route(logits, routing, bias)
        weights = (logits.sigmoid() + (0 if bias is None else bias)).gather(-1, indices.long())
        return indices, weights / weights.sum(-1, keepdim=True) * routing.scale

    monkeypatch.setattr(kernels, "route", biased)
    assert_seen(paths["hf"], model)


def test_a_correction_bias_in_half_precision_is_seen(files: Files) -> None:
    """Its values are large beside the scores: bfloat16 makes near ties of different experts."""
    paths, model = files("v3 of 256")
    wanted = checkpoints.logits(model, IDS)
    with loaded(paths["hf"] / "model.safetensors") as llm:
        for layer in (2, 3):
            gate = llm.model.get_submodule(f"model.layers.{layer}.mlp.gate")
            bias = gate.e_score_correction_bias
            assert isinstance(bias, torch.Tensor)
            bias.data = bias.data.bfloat16().float()
        assert (llm.logits(IDS) - wanted).abs().max() > FACTOR * TOLERANCE


def test_shared_experts_left_out_are_seen(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, model = files("v3")
    monkeypatch.setattr(zoo_deepseek.model.SharedMoE, "forward", zoo_deepseek.model.MoE.forward)
    assert_seen(paths["hf"], model)


@pytest.mark.parametrize("layout", ["hf", "split", "fused"])
def test_keys_and_values_in_the_wrong_order_are_seen(files: Files, tmp_path: Path, layout: str) -> None:
    """With heads of equal parts, nothing but the logits tells keys from values."""
    model = save_deepseek(tmp_path / "model", "v3", v_head_dim=16)
    path = tmp_path / "model"
    if layout != "hf":
        (path,) = write(tmp_path / "model.gguf", deepseek_contents(model, layout))
    assert difference(path, model) < TOLERANCE
    names = HF if layout == "hf" else GGUF
    resolve = names.resolve

    def swapped(name: str) -> Any:
        target, expert = resolve(name)
        if isinstance(target, Rows) and "k_b_proj" in target.targets[0]:
            target = Rows(*reversed(target.targets), dim=target.dim)
        return target, expert

    if layout == "split":
        contents = deepseek_contents(model, "split")
        for name in [name for name in contents.tensors if "attn_k_b" in name]:
            contents.tensors[name] = contents.tensors[name].reshape(4, 16, 32).transpose(0, 2, 1).copy()
        (path,) = write(tmp_path / "wrong.gguf", contents)
        assert_seen(path, model)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "resolve", swapped)
        assert_seen(path, model)


def test_kv_b_cut_by_parts_instead_of_heads_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys first, then all values: the shapes agree."""
    paths, model = files("v3")
    tensors = tensors_of(paths["hf"])
    for name in [name for name in tensors if "kv_b_proj" in name]:
        heads = tensors[name].unflatten(0, (4, 28))
        tensors[name] = torch.cat((heads[:, :16].flatten(0, 1), heads[:, 16:].flatten(0, 1)))
    rewrite(paths["hf"], paths["hf"] / "parts", tensors)
    assert_seen(paths["hf"] / "parts", model)


@pytest.mark.parametrize(
    ("pattern", "swapped"),
    [("ffn_gate_exps", "ffn_up_exps"), ("ffn_gate_shexp", "ffn_up_shexp"), ("attn_norm", "ffn_norm")],
)
def test_swapped_names_are_seen(files: Files, monkeypatch: pytest.MonkeyPatch, pattern: str, swapped: str) -> None:
    paths, model = files("v3")
    resolve = GGUF.resolve

    def wrong(name: str) -> Any:
        other = {f".{pattern}.": f".{swapped}.", f".{swapped}.": f".{pattern}."}
        found = next((key for key in other if key in name), None)
        return resolve(name if found is None else name.replace(found, other[found]))

    monkeypatch.setattr(GGUF, "resolve", wrong)
    assert_seen(paths["split"], model)


def test_a_latent_without_its_norm_is_seen(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latent is cached normalised; the rotated key beside it is not."""
    paths, model = files("v3")
    monkeypatch.setattr(zoo_deepseek.model.Attention, "forward", _without_norm)
    assert_seen(paths["hf"], model)


def _without_norm(self: Any, hidden_states: Any, rotary: Any, batch: Any, kv: Any) -> Any:
    q, kv_a = self.project(hidden_states)
    q_nope, q_rope = q.unflatten(-1, (-1, self.nope + self.rope)).split((self.nope, self.rope), dim=-1)
    latent, k_rope = kv_a.split((self.rank, self.rope), dim=-1)
    out = zoo_deepseek.model.attend_latent(
        q_nope, q_rope, latent, k_rope, self.k_b_proj, self.v_b_proj, rotary, batch, kv, scale=self.scale
    )
    return self.o_proj(out)


def test_the_absorbed_form_alone_is_held_against_the_oracle(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in the form that decode takes is seen where tokens come one by one, and only there."""
    paths, model = files("v3")
    wanted = checkpoints.logits(model, IDS)
    honest = zoo_deepseek.model.attend_latent

    def wrong(q_nope: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return honest(q_nope * (1.05 if len(q_nope) == 1 else 1.0), *args, **kwargs)

    monkeypatch.setattr(zoo_deepseek.model, "attend_latent", wrong)
    with loaded(paths["hf"] / "model.safetensors") as llm:
        assert (llm.logits(IDS) - wanted).abs().max() < TOLERANCE
        stepwise = llm.model.logits(llm._engine.hidden(tuple(IDS), 1))
    assert (stepwise - wanted).abs().max() > FACTOR * TOLERANCE


def test_fp8_scales_that_divide_are_seen(files: Files, tmp_path: Path) -> None:
    """`weight_scale_inv` is multiplied by, despite its name."""
    paths, model = files("v3")
    packed, exact = fp8_tensors(tensors_of(paths["hf"]), (16, 16))
    for name in packed:
        if name.endswith("_scale_inv"):
            packed[name] = 1 / packed[name]
    rewrite(paths["hf"], tmp_path / "wrong", packed, **fp8_config((16, 16)))
    rewrite(paths["hf"], tmp_path / "plain", exact)
    assert_seen(tmp_path / "wrong", with_weights(model, tmp_path / "plain"))


def test_fp8_scales_that_are_shifted_by_a_block_are_seen(files: Files, tmp_path: Path) -> None:
    paths, model = files("v3")
    packed, exact = fp8_tensors(tensors_of(paths["hf"]), (16, 16))
    name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv"
    packed[name] = packed[name].roll(1, 0)
    rewrite(paths["hf"], tmp_path / "wrong", packed, **fp8_config((16, 16)))
    rewrite(paths["hf"], tmp_path / "plain", exact)
    assert_seen(tmp_path / "wrong", with_weights(model, tmp_path / "plain"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("yarn_log_multiplier", 0.0707), ("yarn_log_multiplier", 1.0)],
    ids=["that of V2", "mscale_all_dim itself, as other architectures write it"],
)
def test_the_multiplier_of_gguf_is_a_tenth(files: Files, key: str, value: float) -> None:
    paths, model = files("v3")
    with loaded(paths["split"], overrides={f".rope.scaling.{key}": value}) as llm:
        assert (llm.logits(IDS) - checkpoints.logits(model, IDS)).abs().max() > FACTOR * TOLERANCE


def test_other_betas_than_the_32_and_1_that_gguf_does_not_say_are_seen(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, model = files("v3")
    read = RopeParameters.from_gguf
    monkeypatch.setattr(
        RopeParameters,
        "from_gguf",
        staticmethod(lambda *args, **kwargs: dataclasses.replace(read(*args, **kwargs), beta_fast=1.0, beta_slow=0.1)),
    )
    assert_seen(paths["split"], model)
