"""The cap of logits, in the op and in the head; and the scale of an embedding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.kernels import softcap
from zoo.nn import Embedding, LMHead


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_softcap_is_the_formula(dtype: torch.dtype) -> None:
    x = (torch.linspace(-400, 400, 801)).to(dtype)
    before = x.clone()
    found = softcap(x, 30.0)
    assert found.dtype == dtype
    assert torch.equal(x, before)
    wanted = 30 * torch.tanh(x.double() / 30)
    assert (found.double() - wanted).abs().max() < 30 * 2 * torch.finfo(dtype).eps
    assert found.abs().max() <= 30


def test_softcap_keeps_infinities_finite_and_nan_visible() -> None:
    found = softcap(torch.tensor([float("inf"), -float("inf"), float("nan")]), 5.0)
    assert found[:2].tolist() == [5, -5]
    assert found[2].isnan()


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_caps_its_logits(tied: bool) -> None:
    table = Embedding(7, 4)
    weight = torch.randn(7, 4)
    table.set_weight("weight", weight)
    plain, capped = (LMHead(4, 7, tied_to=table if tied else None, softcap=cap) for cap in (None, 1.5))
    if not tied:
        plain.set_weight("weight", weight)
        capped.set_weight("weight", weight)
    hidden = torch.randn(3, 4) * 3
    assert torch.allclose(plain(hidden), nn.functional.linear(hidden, weight))
    assert torch.allclose(capped(hidden), 1.5 * torch.tanh(plain(hidden) / 1.5), atol=1e-6)
    assert capped(hidden.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("width", "dtype", "scale"),
    [
        (2560, torch.bfloat16, 50.5),
        (3072, torch.bfloat16, 55.5),
        (3584, torch.bfloat16, 59.75),
        (640, torch.float32, 640**0.5),
        (2560, torch.float16, 50.59375),
    ],
)
def test_the_scale_of_an_embedding_has_the_compute_dtype(width: int, dtype: torch.dtype, scale: float) -> None:
    table = Embedding(3, width, scale=width**0.5)
    table.set_weight("weight", torch.eye(3, width))
    table.finalize(torch.device("cpu"), dtype)
    rows = table(torch.tensor([2, 0], dtype=torch.int32))
    assert rows.dtype == dtype
    assert rows[0, 2].item() == pytest.approx(scale, rel=1e-7)
