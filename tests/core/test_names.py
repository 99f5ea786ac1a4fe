"""NameMap: patterns of tensor names."""

from __future__ import annotations

from typing import Any

import pytest

from zoo.errors import PluginError
from zoo.weights.names import WRAPPED, Apply, Expert, NameMap, Rows


def double(value: Any) -> Any:
    return value * 2


MAP = NameMap(
    {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.*.attn_q.weight": "model.layers.*.q_proj.weight",
        "blk.*.qkv.weight": Rows("layers.*.q", "layers.*.k", "layers.*.v", dim=1),
        "blk.*.exp.*.gate.weight": Expert("layers.*.experts.gate_proj"),
        "blk.*.norm.weight": Apply(double, "layers.*.norm.weight"),
        "blk.3.special": "first",
        "blk.*.special": "second",
        "rope_freqs.weight": None,
        "blk.*.unused": None,
    }
)


@pytest.mark.parametrize(
    ("name", "target", "expert"),
    [
        ("token_embd.weight", "model.embed_tokens.weight", None),
        ("blk.0.attn_q.weight", "model.layers.0.q_proj.weight", None),
        ("blk.123.attn_q.weight", "model.layers.123.q_proj.weight", None),
        ("blk.7.qkv.weight", Rows("layers.7.q", "layers.7.k", "layers.7.v", dim=1), None),
        ("blk.7.exp.12.gate.weight", Expert("layers.7.experts.gate_proj"), 12),
        ("blk.7.norm.weight", Apply(double, "layers.7.norm.weight"), None),
        ("rope_freqs.weight", None, None),
        ("blk.9.unused", None, None),
    ],
)
def test_names_find_their_targets(name: str, target: Any, expert: int | None) -> None:
    assert MAP.resolve(name) == (target, expert)


def test_earlier_patterns_win() -> None:
    assert MAP.resolve("blk.3.special")[0] == "first"
    assert MAP.resolve("blk.4.special")[0] == "second"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "token_embdXweight",  # the dot of a pattern is a dot
        "token_embd.weight ",
        "xtoken_embd.weight",
        "blk..attn_q.weight",
        "blk.x.attn_q.weight",
        "blk.-1.attn_q.weight",
        "blk.٣.attn_q.weight",
        "blk." + "9" * 5000 + ".attn_q.weight",
        "blk.1.exp." + "9" * 5000 + ".gate.weight",
        "blk.*.attn_q.weight",
    ],
)
def test_unknown_names_are_key_errors(name: str) -> None:
    with pytest.raises(KeyError):
        MAP.resolve(name)


def test_identity_maps_a_name_to_itself_where_nothing_else_matches() -> None:
    names = NameMap({"a.*.b": None, "old": "new"}, identity=True)
    assert names.resolve("model.layers.0.w") == ("model.layers.0.w", None)
    assert names.resolve("a.1.b") == (None, None)
    assert names.resolve("old") == ("new", None)


@pytest.mark.parametrize("pattern", ["blk.*.gate", "gate"])
def test_an_expert_needs_a_number(pattern: str) -> None:
    with pytest.raises(PluginError, match=f"{pattern.replace('*', '.')} goes to an Expert but names no expert"):
        NameMap({pattern: Expert("layers.*.experts.gate_proj")})


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("language_model.model.layers.3.mlp.gate_proj.weight", "model.layers.3.mlp.gate_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.layers.3.mlp.gate_proj.weight", "model.layers.3.mlp.gate_proj.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_tower.vision_model.embeddings.patch_embedding.weight", None),
        ("model.vision_tower.encoder.layers.0.weight", None),
        ("model.multi_modal_projector.mm_soft_emb_norm.weight", None),
        ("model.layers.2.self_attn.rotary_emb.inv_freq", None),
        ("language_model.model.layers.2.self_attn.rotary_emb.inv_freq", None),
        ("vision_towers.weight", "vision_towers.weight"),  # a prefix ends at a dot
    ],
)
def test_a_wrapped_text_model(name: str, target: str | None) -> None:
    wrapped = NameMap({"model.layers.*.self_attn.rotary_emb.inv_freq": None}, identity=True, prefixes=WRAPPED)
    assert wrapped.resolve(name) == (target, None)


def test_without_prefixes_nothing_is_unwrapped() -> None:
    name = "vision_tower.weight"
    assert NameMap({}, identity=True).resolve(name) == (name, None)
    with pytest.raises(KeyError):
        NameMap({"a": None}, prefixes={"x.": ""}).resolve("x.b")
