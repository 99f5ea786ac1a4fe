"""Plain torch `head_linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.quant.tensor import QuantTensor


def head_linear(x: Tensor, weight: Tensor | QuantTensor, *, transposed: bool = False) -> Tensor:
    """See zoo.kernels.head_linear."""
    dense = weight.dequantize(x.dtype) if isinstance(weight, QuantTensor) else weight.to(x.dtype)
    return torch.einsum("tni,nio->tno" if transposed else "tni,noi->tno", x, dense)
