"""The ops of blocks with layer norms and ungated MLPs, against torch in float64."""

from __future__ import annotations

import pytest
import torch

from zoo.kernels import layer_norm
from zoo.nn import LayerNorm, activate, add

HALF = [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)]


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double() + bias.double()


def near(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    return bool(((found.double() - wanted).abs() <= tolerance * wanted.abs().clamp(min=1)).all())


@pytest.mark.parametrize(("dtype", "tolerance"), HALF)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_layer_norm_with_the_addition_before_it(dtype: torch.dtype, tolerance: float, eps: float) -> None:
    torch.manual_seed(0)
    x, delta = (torch.randn(5, 24).to(dtype) * 3 + 1 for _ in range(2))
    weight, bias = torch.randn(24), torch.randn(24)
    found, same = layer_norm(x, weight, bias, eps=eps)
    assert found.dtype == dtype
    assert torch.equal(same, x)
    assert near(found, exact(x, weight, bias, eps), tolerance)
    found, total = layer_norm(x, weight, bias, eps=eps, add=delta)
    assert torch.equal(total, x + delta)
    assert near(found, exact(x + delta, weight, bias, eps), tolerance)


def test_layer_norm_without_weight_and_bias() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 16)
    found, _ = layer_norm(x, None, None, eps=1e-5)
    assert near(found, exact(x, torch.ones(16), torch.zeros(16), 1e-5), 1e-6)


def test_half_precision_weights_are_applied_in_float32() -> None:
    """Rounded once, at the end."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(64, 32).bfloat16(), torch.randn(32).bfloat16(), torch.randn(32).bfloat16()
    found, _ = layer_norm(x, weight, bias, eps=1e-5)
    assert (found != exact(x, weight, bias, 1e-5).bfloat16()).float().mean() < 0.01


def test_the_leaf_holds_a_weight_and_a_bias() -> None:
    torch.manual_seed(0)
    leaf, theirs = LayerNorm(16, 1e-3), torch.nn.LayerNorm(16, 1e-3)
    assert {name: tuple(parameter.shape) for name, parameter in leaf.named_parameters()} == {
        "weight": (16,),
        "bias": (16,),
    }
    for name, parameter in theirs.named_parameters():
        parameter.data.normal_()
        leaf.set_weight(name, parameter.data)
    x, delta = torch.randn(4, 16), torch.randn(4, 16)
    assert torch.allclose(leaf(x), theirs(x), atol=1e-6)
    normed, total = leaf(x, add=delta)
    assert torch.equal(total, x + delta)
    assert torch.allclose(normed, theirs(x + delta), atol=1e-6)
    assert torch.equal(leaf(x, add=None)[1], x)


@pytest.mark.parametrize(("dtype", "tolerance"), HALF)
def test_activations(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.linspace(-6, 6, 97).to(dtype).view(1, -1)
    wide = x.double()
    gelu = 0.5 * wide * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)))
    for act, wanted in (("silu", wide / (1 + torch.exp(-wide))), ("gelu_tanh", gelu)):
        found = activate(x, act=act)
        assert found.dtype == dtype
        assert near(found, wanted, tolerance)


def test_sum_of_two_branches() -> None:
    x, y = torch.randn(3, 8).bfloat16(), torch.randn(3, 8).bfloat16()
    assert torch.equal(add(x, y), (x.double() + y.double()).bfloat16())
