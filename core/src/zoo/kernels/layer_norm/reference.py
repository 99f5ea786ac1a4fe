"""Plain torch `layer_norm`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, add: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See zoo.kernels.layer_norm."""
    if add is not None:
        x = x + add
    weight, bias = (None if value is None else value.float() for value in (weight, bias))
    return F.layer_norm(x.float(), (x.shape[-1],), weight, bias, eps).to(x.dtype), x
