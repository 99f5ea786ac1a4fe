"""Plain torch `glu`."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.activate.reference import activate
from zoo.kernels.glu import Activation
from zoo.kernels.linear.reference import matmul
from zoo.quant.tensor import QuantTensor


def glu(
    x: Tensor,
    gate: Tensor | QuantTensor,
    up: Tensor | QuantTensor,
    *,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    act: Activation = "silu",
) -> Tensor:
    """See zoo.kernels.glu."""
    return activate(matmul(x, gate, gate_bias), act) * matmul(x, up, up_bias)
