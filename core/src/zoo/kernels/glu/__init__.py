"""Gated linear unit: act(x W_gate^T) * (x W_up^T)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from zoo.kernels.registry import implementation
from zoo.quant.tensor import QuantTensor

__all__ = ["Activation", "glu"]

Activation = Literal["silu", "gelu_tanh"]


def glu(
    x: Tensor,
    gate: Tensor | QuantTensor,
    up: Tensor | QuantTensor,
    *,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    act: Activation = "silu",
) -> Tensor:
    """Gate and up projections with the activation between them (Shazeer 2020, arXiv 2002.05202).

    x: [..., in]; gate, up: [F, in] of any type; biases [F]. Returns [..., F] in the dtype of x.
    `act`: "silu", or "gelu_tanh" for the tanh approximation of GELU.
    """
    result: Tensor = implementation("glu", x.device.type)(x, gate, up, gate_bias=gate_bias, up_bias=up_bias, act=act)
    return result
