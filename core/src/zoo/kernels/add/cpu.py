"""Native `add`."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.add import reference
from zoo.kernels.native import structs
from zoo.kernels.native.elementwise import elementwise


def add(x: Tensor, y: Tensor) -> Tensor:
    """See zoo.kernels.add."""
    found = elementwise(structs.ADD, x, y)
    return reference.add(x, y) if found is None else found
