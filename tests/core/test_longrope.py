"""LongRoPE's parameters from both formats, against transformers' formulas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from zoo.errors import ConfigError
from zoo.formats.tensor import TensorInfo
from zoo.nn import RopeParameters, RotaryEmbedding

DIM, ORIGINAL, CONTEXT = 12, 64, 256
SHORT = [1.0 + 0.05 * i for i in range(DIM // 2)]
LONG = [1.0 + 0.7 * i for i in range(DIM // 2)]
SCALING = {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}
ROOT = {
    "rope_theta": 5000.0,
    "max_position_embeddings": CONTEXT,
    "original_max_position_embeddings": ORIGINAL,
    "rope_scaling": SCALING,
}


def hf(**changes: Any) -> RopeParameters:
    """From a config.json with `changes`, a dict among them being merged into rope_scaling."""
    config = ROOT | {key: value for key, value in changes.items() if key != "scaling"}
    config["rope_scaling"] = {**SCALING, **changes.get("scaling", {})}
    source = SimpleNamespace(config=config, path=Path("/m"))
    return RopeParameters.from_hf(source, dim=DIM)  # type: ignore[arg-type]


KEYS = {
    "rope.freq_base": 5000.0,
    "context_length": CONTEXT,
    "rope.scaling.original_context_length": ORIGINAL,
    "rope.scaling.attn_factor": 1.25,
}
TENSORS = {"rope_factors_long.weight": LONG, "rope_factors_short.weight": SHORT}


def gguf(keys: Mapping[str, Any] = KEYS, tensors: Mapping[str, list[float]] = TENSORS) -> RopeParameters:
    data = {name: np.array(values, np.float32) for name, values in tensors.items()}
    source = SimpleNamespace(
        path=Path("/m.gguf"),
        key=lambda name, default=None: keys.get(name.removeprefix("."), default),
        tensors={
            name: TensorInfo(name, "F32", values.shape, Path("/m.gguf"), 0, values.nbytes)
            for name, values in data.items()
        },
        read=lambda name: memoryview(data[name].tobytes()),
    )
    return RopeParameters.from_gguf(source, dim=DIM, interleaved=False)  # type: ignore[arg-type]


def reference(length: int, **changes: Any) -> tuple[torch.Tensor, float]:
    """Frequencies and scaling by transformers for a sequence of `length` tokens."""
    config = Phi3Config(
        hidden_size=48, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=CONTEXT,
        original_max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_type": "longrope", "rope_theta": 5000.0, "partial_rotary_factor": 1.0,
                         "short_factor": SHORT, "long_factor": LONG, **changes},
    )  # fmt: skip
    return ROPE_INIT_FUNCTIONS["longrope"](config, None, seq_len=length)


@pytest.mark.parametrize("changes", [{}, {"factor": 8.0}, {"factor": 0.5}, {"attention_factor": 1.5}])
def test_both_sets_equal_transformers(changes: dict[str, float]) -> None:
    found = hf(scaling=changes)
    assert found.short is not None
    for parameters, length in ((found, ORIGINAL + 1), (found.short, ORIGINAL)):
        frequencies, scaling = reference(length, **changes)
        assert torch.allclose(parameters.inv_freq(), frequencies, rtol=1e-6)
        assert parameters.attention_scaling == pytest.approx(scaling, rel=1e-9)


def test_gguf_equals_hf() -> None:
    found, wanted = gguf(), hf(scaling={"attention_factor": 1.25})
    assert found.short is not None
    assert wanted.short is not None
    for one, other in ((found, wanted), (found.short, wanted.short)):
        assert torch.equal(one.inv_freq(), other.inv_freq())
        assert one.attention_scaling == other.attention_scaling == 1.25
        assert one.original_max_position_embeddings == ORIGINAL


def test_gguf_without_a_factor_of_attention_goes_by_the_rule() -> None:
    keys = {key: value for key, value in KEYS.items() if not key.endswith("attn_factor")}
    assert gguf(keys).attention_scaling == hf().attention_scaling > 1
    assert gguf({**keys, "rope.scaling.type": "longrope"}) == gguf(keys)


def test_other_spellings() -> None:
    assert hf(scaling={"type": "su"}) == hf()
    mscales = hf(scaling={"short_mscale": 1.1, "long_mscale": 1.3})
    assert mscales.short is not None
    assert (mscales.short.attention_scaling, mscales.attention_scaling) == (1.1, 1.3)
    inside = hf(original_max_position_embeddings=None, scaling={"original_max_position_embeddings": ORIGINAL})
    assert inside == hf()


def test_the_longest_sequence_decides_not_the_position() -> None:
    """All positions of a run are turned by one set, before and past the original context."""
    embedding = RotaryEmbedding(hf(scaling={"short_mscale": 1.1, "long_mscale": 1.3}))
    embedding.finalize(torch.device("cpu"), torch.float32)
    positions = torch.tensor([0, 3, ORIGINAL, CONTEXT - 1], dtype=torch.int32)
    for limit, length, scaling in (
        (ORIGINAL, ORIGINAL, 1.1),
        (ORIGINAL + 1, ORIGINAL + 1, 1.3),
        (CONTEXT, ORIGINAL + 1, 1.3),
        (None, ORIGINAL + 1, 1.3),
    ):
        angles = positions.double()[:, None] * reference(length)[0].double()
        found = embedding(positions, limit)
        assert torch.allclose(found.cos.double(), angles.cos() * scaling, atol=1e-4)
        assert torch.allclose(found.sin.double(), angles.sin() * scaling, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scaling": {"long_factor": LONG[:-1]}}, r"rope_scaling\.long_factor is a list of 5; it must be a list of 6"),
        ({"scaling": {"short_factor": None}}, r"rope_scaling\.short_factor is None; it must be a list of 6"),
        ({"scaling": {"short_factor": [*SHORT[:-1], 0]}}, r"an element of rope_scaling\.short_factor is 0"),
        ({"scaling": {"long_factor": [*LONG[:-1], "2"]}}, r"an element of rope_scaling\.long_factor is '2'"),
        ({"scaling": {"factor": -1}}, r"rope_scaling\.factor is -1"),
        ({"scaling": {"long_mscale": float("nan")}}, r"rope_scaling\.long_mscale is nan"),
        ({"original_max_position_embeddings": None}, "original_max_position_embeddings is None; LongRoPE needs"),
        ({"original_max_position_embeddings": 1}, "original_max_position_embeddings is 1; LongRoPE needs"),
        ({"max_position_embeddings": None}, "max_position_embeddings is None"),
    ],
)
def test_bad_config(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=f"/m/config.json: {error}"):
        hf(**changes)


@pytest.mark.parametrize(
    ("keys", "tensors", "error"),
    [
        ({}, {"rope_factors_long.weight": LONG}, "there is no tensor rope_factors_short.weight; LongRoPE needs both"),
        ({}, {"rope_factors_short.weight": SHORT}, "there is no tensor rope_factors_long.weight"),
        ({"rope.scaling.type": "longrope"}, {}, "there is no tensor rope_factors_long.weight"),
        ({}, {**TENSORS, "rope_factors_long.weight": LONG[1:]}, r"rope_factors_long.weight is F32 \[5\]; expected F32"),
        ({}, {**TENSORS, "rope_factors_long.weight": [0.0, *LONG[1:]]}, "an element of rope_factors_long.weight is 0"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, TENSORS, "rope.scaling.type is 'yarn', but there"),
        ({"rope.scaling.factor": 2.0}, TENSORS, "rope.scaling.type is 'linear', but there are the tensors of LongRoPE"),
        ({"rope.scaling.original_context_length": None}, TENSORS, "original_context_length is None; LongRoPE needs"),
        ({"rope.scaling.attn_factor": 0.0}, TENSORS, "rope.scaling.attn_factor is 0.0"),
        ({"context_length": None}, TENSORS, "context_length is None"),
    ],
)
def test_bad_gguf(keys: dict[str, Any], tensors: dict[str, list[float]], error: str) -> None:
    with pytest.raises(ConfigError, match=f"/m.gguf: .*{error}"):
        gguf(KEYS | keys, tensors)
