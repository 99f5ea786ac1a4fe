"""Native `activate`."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.activate import reference
from zoo.kernels.glu import Activation
from zoo.kernels.native import structs
from zoo.kernels.native.elementwise import elementwise


def activate(x: Tensor, *, act: Activation) -> Tensor:
    """See zoo.kernels.activate."""
    found = elementwise(structs.ACTIVATE, x, act=structs.ACTS[act]) if act in structs.ACTS else None
    return reference.activate(x, act=act) if found is None else found
