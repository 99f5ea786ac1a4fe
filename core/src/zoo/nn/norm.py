"""Norms."""

from __future__ import annotations

from types import EllipsisType
from typing import TYPE_CHECKING, overload

from torch import Tensor

from zoo import kernels
from zoo.nn.leaf import Leaf


class LayerNorm(Leaf):
    """Norm over the last dimension by its mean and variance, with a weight and a bias."""

    weight: Tensor
    bias: Tensor

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.declare("weight", size)
        self.declare("bias", size)

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, add: Tensor | None) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, add: Tensor | EllipsisType | None = ...) -> Tensor | tuple[Tensor, Tensor]:
        """Norm of x [..., D]. With `add` (a tensor, or None for nothing yet): (norm of x + add, x + add)."""
        if add is ...:
            return kernels.layer_norm(x, self.weight, self.bias, eps=self.eps)[0]
        return kernels.layer_norm(x, self.weight, self.bias, eps=self.eps, add=add)

    if TYPE_CHECKING:
        __call__ = forward


class RMSNorm(Leaf):
    """Root-mean-square norm over the last dimension; `offset` 1 where the file stores weight - 1 (Gemma)."""

    weight: Tensor

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        self.offset = offset
        self.declare("weight", size)

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, add: Tensor | None) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, add: Tensor | EllipsisType | None = ...) -> Tensor | tuple[Tensor, Tensor]:
        """Norm of x [..., D]. With `add` (a tensor, or None for nothing yet): (norm of x + add, x + add)."""
        if add is ...:
            return kernels.rms_norm(x, self.weight, eps=self.eps, offset=self.offset)[0]
        return kernels.rms_norm(x, self.weight, eps=self.eps, add=add, offset=self.offset)

    if TYPE_CHECKING:
        __call__ = forward
