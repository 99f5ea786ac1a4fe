"""Plain torch `linear`: unpack a panel of rows, multiply, drop it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.quant.tensor import QuantTensor

# Elements unpacked at a time: a vocabulary of 128k rows must not become 2 GB of float32.
PANEL_ELEMENTS = 1 << 23


def linear(x: Tensor, weights: Sequence[Tensor | QuantTensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """See zoo.kernels.linear."""
    return tuple(matmul(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))


def matmul(x: Tensor, weight: Tensor | QuantTensor, bias: Tensor | None = None) -> Tensor:
    """X [..., in] times weight [out, in] transposed, plus bias [out]; computes and returns in the dtype of x."""
    if not x.shape[:-1].numel():
        # Chunks of a prompt that want no logits come here with the vocabulary: nothing of it is unpacked for them.
        return x.new_empty((*x.shape[:-1], weight.shape[0]))
    panels = [F.linear(x, panel) for panel in _panels(weight, x.dtype)]
    y = panels[0] if len(panels) == 1 else torch.cat(panels, dim=-1)
    return y if bias is None else y + bias.to(y.dtype)


def _panels(weight: Tensor | QuantTensor, dtype: torch.dtype) -> Iterator[Tensor]:
    if isinstance(weight, Tensor) and weight.dtype == dtype:
        yield weight
        return
    rows = max(128, PANEL_ELEMENTS // weight.shape[-1] // 128 * 128)
    for start in range(0, weight.shape[0], rows):
        panel = weight[start : start + rows]
        yield panel.dequantize(dtype) if isinstance(panel, QuantTensor) else panel.to(dtype)
