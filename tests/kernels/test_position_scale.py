"""The position_scale op, against transformers' own function and against float64."""

from __future__ import annotations

import pytest
import torch
from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

from zoo.nn import position_scale

POSITIONS = torch.tensor([0, 5, 15, 16, 31, 32, 1000, 262143], dtype=torch.int32)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_equals_transformers(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(len(POSITIONS), 4, 8).to(dtype)
    found = position_scale(x, POSITIONS, beta=0.1, length=16)
    assert found.dtype == dtype
    wanted = x.double() * get_llama_4_attn_scale(POSITIONS[None].double(), 0.1, 16)[0].transpose(0, 1)
    assert ((found.double() - wanted).abs() <= tolerance * wanted.abs().clamp(min=1)).all()


def test_the_first_positions_are_left_as_they_are() -> None:
    x = torch.randn(3, 8)
    assert torch.equal(position_scale(x, torch.tensor([0, 7, 15]), beta=0.5, length=16), x)
    assert not torch.equal(position_scale(x, torch.tensor([0, 7, 16]), beta=0.5, length=16), x)
