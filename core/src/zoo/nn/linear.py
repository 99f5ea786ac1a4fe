"""Linear layers over dense or packed weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from zoo import kernels
from zoo.kernels.glu import Activation
from zoo.nn.leaf import Leaf
from zoo.quant.tensor import QuantTensor


class Linear(Leaf):
    """y = x W^T + b, W [out_features, in_features] as it lies on disk."""

    weight: Tensor | QuantTensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.declare("weight", out_features, in_features)
        if bias:
            self.declare("bias", out_features)
        else:
            self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """X [..., in_features] -> [..., out_features]."""
        return kernels.linear(x, (self.weight,), (self.bias,))[0]

    if TYPE_CHECKING:
        __call__ = forward


class HeadLinear(Leaf):
    """One weight per head: W [num_heads, out_features, in_features], or with `transposed` [num_heads, in, out]."""

    weight: Tensor | QuantTensor

    def __init__(self, num_heads: int, in_features: int, out_features: int, *, transposed: bool = False) -> None:
        super().__init__()
        self.transposed = transposed
        inner = (in_features, out_features) if transposed else (out_features, in_features)
        self.declare("weight", num_heads, *inner)

    def forward(self, x: Tensor) -> Tensor:
        """X [T, num_heads, in_features] -> [T, num_heads, out_features]."""
        return kernels.head_linear(x, self.weight, transposed=self.transposed)

    if TYPE_CHECKING:
        __call__ = forward


def project(x: Tensor, *layers: Linear) -> tuple[Tensor, ...]:
    """Several linear layers on one input, in one call to the kernel. x: [..., in]; one [..., out_i] per layer."""
    return kernels.linear(x, [layer.weight for layer in layers], [layer.bias for layer in layers])


def glu(x: Tensor, gate: Linear, up: Linear, *, act: Activation) -> Tensor:
    """act(gate(x)) * up(x), in one call to the kernel. x: [..., in]; returns [..., out_features]."""
    return kernels.glu(x, gate.weight, up.weight, gate_bias=gate.bias, up_bias=up.bias, act=act)
