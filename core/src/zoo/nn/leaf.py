"""What every module with weights has in common."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from zoo.errors import ConfigError
from zoo.quant.experts import ExpertWeights
from zoo.quant.tensor import QuantTensor

# Far above any model; torch cannot even describe more bytes than 2^63.
_LIMIT = 1 << 56

Weight = Tensor | QuantTensor | ExpertWeights


class Leaf(nn.Module):
    """A module whose weights are declared by shape and filled in by the loader, packed as they lie on disk.

    Declared weights are parameters on the meta device until `set_weight` puts the real one in their place.
    """

    changes: ClassVar[int] = 0
    """How often something was set on a leaf of any model, or put into a module: what was recorded may be stale."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        _changed()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        _changed()

    def declare(self, name: str, *shape: int) -> None:
        """Say that this module has a weight `name` of `shape`. Raises ConfigError for one that no memory can hold."""
        if math.prod(shape) >= _LIMIT:
            raise ConfigError(
                f"the sizes of the configuration give a weight of shape {list(shape)}", remedy="fetch the file again"
            )
        self.register_parameter(name, nn.Parameter(torch.empty(*shape, device="meta"), requires_grad=False))

    def set_weight(self, name: str, value: Weight) -> None:
        """Put a loaded weight in the place of the declared one. The loader has checked its shape."""
        if isinstance(value, Tensor):
            setattr(self, name, nn.Parameter(value, requires_grad=False))
            return
        # A packed weight is no torch tensor: it lives as a plain attribute.
        del self._parameters[name]
        setattr(self, name, value)


def _changed(*_: object) -> None:
    Leaf.changes += 1


register_module_module_registration_hook(_changed)
