"""The rules of model code, checked while a model runs.

A model never reads the value of a tensor: on a GPU that would wait for the device, and a recorded step could not be
replayed. In decode it calls zoo's ops and makes views, nothing else. Kernels are free to do as they must.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch.overrides import TorchFunctionMode, resolve_name

READS = frozenset(
    "item tolist numpy __bool__ __int__ __float__ __index__ __len__ __array__ __contains__ nonzero argwhere "
    "masked_select unique unique_consecutive equal allclose is_nonzero cpu".split()
)
"""Functions that read a value, or give a result whose shape depends on one."""

VIEWS = frozenset(
    "__get__ __getitem__ view unflatten flatten reshape split chunk narrow select unbind transpose permute squeeze "
    "unsqueeze expand size dim float to is_floating_point".split()
)
"""What a model may call of torch in decode: views, attributes, and casts."""


class ModelRuleError(AssertionError):
    """Model code did what the rules forbid; says what and where."""


@contextmanager
def model_rules(*, decode: bool = False) -> Iterator[None]:
    """Raise ModelRuleError when model code breaks a rule inside this block; `decode` adds the rule on ops."""
    with _Rules(decode):
        yield


class _Rules(TorchFunctionMode):
    def __init__(self, decode: bool) -> None:
        super().__init__()
        self.decode = decode

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS or (self.decode and name not in VIEWS):
            where = _model_frame(sys._getframe(1))
            if where is not None:
                rule = "reads a tensor's value" if name in READS else "is neither an op of zoo nor a view"
                raise ModelRuleError(f"{where}: {resolve_name(func) or name} {rule}")
        return func(*args, **(kwargs or {}))


def _model_frame(frame: FrameType | None) -> str | None:
    """Where model code made the call: a plugin's module or zoo.nn, not inside a kernel. None: somebody else did."""
    place = None
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("zoo.kernels."):
            return None
        if place is None and not module.startswith(("torch.", "zoo.testing.")):
            if module.startswith("zoo.") and not module.startswith("zoo.nn."):
                return None
            place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return place
