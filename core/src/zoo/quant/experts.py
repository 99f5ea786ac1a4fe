"""The weights of many experts as one thing, without copying them together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from zoo.quant.tensor import QuantTensor


class ExpertWeights:
    """One projection of all experts: a table of views, `experts[e]` being [out, in] of any type.

    A file that stores experts apart gives one view per expert, a file that stacks them [E, out, in] gives slices of one
    tensor: nothing is copied either way. `stacked` is that tensor in the second case, for kernels that can use strides.
    """

    __slots__ = ("__weakref__", "stacked", "views")

    def __init__(self, views: Sequence[Tensor | QuantTensor], stacked: Tensor | QuantTensor | None = None) -> None:
        self.views = tuple(views)
        self.stacked = stacked

    @classmethod
    def from_stacked(cls, tensor: Tensor | QuantTensor) -> ExpertWeights:
        """Slices of one tensor [E, out, in]."""
        return cls([tensor[e] for e in range(tensor.shape[0])], tensor)

    def __getitem__(self, expert: int) -> Tensor | QuantTensor:
        return self.views[expert]

    def __len__(self) -> int:
        return len(self.views)

    @property
    def shape(self) -> tuple[int, ...]:
        """(E, out, in)."""
        return (len(self.views), *self.views[0].shape)
