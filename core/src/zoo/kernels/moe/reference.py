"""Plain torch `moe`: one expert at a time, on the tokens that chose it.

It asks the device which experts were chosen, once per call; faster backends do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.glu import Activation
from zoo.kernels.glu.reference import glu
from zoo.kernels.linear.reference import matmul
from zoo.quant.experts import ExpertWeights


def moe(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate: ExpertWeights,
    up: ExpertWeights,
    down: ExpertWeights,
    *,
    act: Activation = "silu",
    add: Tensor | None = None,
) -> Tensor:
    """See zoo.kernels.moe."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device) if add is None else add.float().clone()
    for expert in indices.unique().tolist():
        token, choice = (indices == expert).nonzero(as_tuple=True)
        hidden = matmul(glu(x[token], gate[expert], up[expert], act=act), down[expert])
        out.index_add_(0, token, hidden.float() * weights[token, choice, None])
    return out.to(x.dtype)
