"""The gate op, against torch in float64."""

from __future__ import annotations

import pytest
import torch

from zoo.nn import gate


@pytest.mark.parametrize("width", [1, 24])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_one_gate_per_token_or_per_element(width: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x, by = torch.randn(5, 24).to(dtype), (torch.randn(5, width) * 4).to(dtype)
    found = gate(x, by)
    assert found.dtype == dtype
    wanted = x.double() / (1 + torch.exp(-by.double()))
    assert ((found.double() - wanted).abs() <= tolerance * wanted.abs().clamp(min=1)).all()


def test_half_precision_is_rounded_once() -> None:
    """As a sigmoid in bfloat16 and then a product would not."""
    torch.manual_seed(0)
    x, by = torch.randn(64, 32).bfloat16(), torch.randn(64, 1).bfloat16()
    assert torch.equal(gate(x, by), (x.double() * by.double().sigmoid()).bfloat16())
    assert not torch.equal(gate(x, by), x * by.sigmoid())
