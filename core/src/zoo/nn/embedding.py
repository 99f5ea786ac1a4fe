"""Token embedding and the head that turns hidden states into logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo import kernels
from zoo.nn.leaf import Leaf
from zoo.quant.tensor import QuantTensor


class Embedding(Leaf):
    """Rows of W [vocab_size, hidden_size] by token id, in the compute dtype, times `scale` rounded to that dtype.

    Gemma was trained with the rounded scale, and transformers rounds it too: in bfloat16 sqrt(2560) is 50.5.
    """

    weight: Tensor | QuantTensor

    def __init__(self, vocab_size: int, hidden_size: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.compute_dtype = torch.float32
        self.declare("weight", vocab_size, hidden_size)

    def finalize(self, device: torch.device, dtype: torch.dtype) -> None:
        """The embedding decides the dtype of all hidden states: `dtype` is the compute type."""
        self.compute_dtype = dtype
        self.scale = torch.tensor(self.scale, dtype=dtype, device="cpu").item()

    def forward(self, input_ids: Tensor) -> Tensor:
        """Ids int32 [T] -> [T, hidden_size]."""
        return kernels.embedding(input_ids, self.weight, dtype=self.compute_dtype, scale=self.scale)

    if TYPE_CHECKING:
        __call__ = forward


class LMHead(Leaf):
    """Logits from hidden states: x W^T + b in float32; W is the embedding's table where the head is tied.

    `softcap` c squeezes the logits into (-c, c), see `zoo.kernels.softcap`.
    """

    weight: Tensor | QuantTensor
    bias: Tensor | None

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        *,
        tied_to: Embedding | None = None,
        bias: bool = False,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.softcap = softcap
        # A tuple, so that torch does not list the embedding twice.
        self._tied_to = None if tied_to is None else (tied_to,)
        if tied_to is None:
            self.declare("weight", vocab_size, hidden_size)
        if bias:
            self.declare("bias", vocab_size)
        else:
            self.bias = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[L, hidden_size] -> float32 [L, vocab_size]."""
        weight = self.weight if self._tied_to is None else self._tied_to[0].weight
        logits = kernels.linear(hidden_states, (weight,), (self.bias,))[0].float()
        return logits if self.softcap is None else kernels.softcap(logits, self.softcap)

    if TYPE_CHECKING:
        __call__ = forward
