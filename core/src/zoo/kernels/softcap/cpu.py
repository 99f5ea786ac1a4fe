"""Native `softcap`."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.native import structs
from zoo.kernels.native.elementwise import elementwise
from zoo.kernels.softcap import reference


def softcap(x: Tensor, cap: float) -> Tensor:
    """See zoo.kernels.softcap."""
    found = elementwise(structs.SOFTCAP, x, value=cap)
    return reference.softcap(x, cap) if found is None else found
