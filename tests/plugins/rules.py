"""The rules of model code, as a torch function mode: a model never reads a tensor's value, and in decode it only calls
zoo's ops and takes views.

    with rules(monkeypatch, decode=True) as seen:
        model.hidden(batch, cache)

Inside an op the mode is blind to arithmetic: what a kernel computes is its own affair. Reading a value is allowed there
too, but not in decode, where it would make a GPU wait at every step.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

import zoo.kernels

# What needs a value on the host, or makes a shape of values.
_READS = frozenset(
    "item tolist numpy cpu __bool__ __int__ __float__ __index__ __complex__ __contains__ __array__ nonzero "
    "argwhere is_nonzero equal allclose masked_select unique unique_consecutive bincount __repr__ __format__ "
    "_local_scalar_dense".split()
)
_VIEWS = frozenset(
    "unflatten flatten view view_as unsqueeze squeeze expand narrow split chunk select transpose permute unbind detach "
    "__getitem__ __get__ size dim stride numel is_contiguous data_ptr float to __len__ __iter__".split()
)


class RuleBroken(AssertionError):
    """Model code did what it must not."""


class _Rules(TorchFunctionMode):
    def __init__(self, decode: bool) -> None:
        super().__init__()
        self.decode = decode
        self.inside = 0
        self.ops: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in _READS or _shape_of_values(name, args):
            if not self.inside or self.decode:
                raise RuleBroken(f"{_place(self)} reads a value: {resolve_name(func) or name}")
        elif self.decode and not self.inside and name not in _VIEWS:
            raise RuleBroken(f"{_place(self)} computes outside of zoo's ops: {resolve_name(func) or name}")
        return func(*args, **(kwargs or {}))

    def guard(self, op: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.ops.append(op)
            self.inside += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.inside -= 1

        return guarded


@contextmanager
def rules(monkeypatch: pytest.MonkeyPatch, *, decode: bool) -> Iterator[list[str]]:
    """Check model code within; yields the ops that were called, in order. Raises RuleBroken where a rule is broken."""
    mode = _Rules(decode)
    with monkeypatch.context() as patch:
        for module in _op_modules():
            original = module.implementation
            patch.setattr(module, "implementation", lambda op, device, find=original: mode.guard(op, find(op, device)))
        with mode:
            yield mode.ops


def _op_modules() -> list[Any]:
    names = [info.name for info in pkgutil.iter_modules(zoo.kernels.__path__) if info.ispkg]
    modules = [importlib.import_module(f"zoo.kernels.{name}") for name in names]
    return [module for module in modules if hasattr(module, "implementation")]


def _shape_of_values(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a shape depends on values: a bool mask as an index, where() of one argument, a tensor of repeats."""
    if name == "where":
        return len(args) == 1
    if name == "repeat_interleave":
        return any(isinstance(argument, Tensor) for argument in args[1:])
    if name != "__getitem__" or len(args) < 2:
        return False
    keys = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(key, Tensor) and (key.dtype == torch.bool or key.ndim == 0) for key in keys)


def _place(mode: _Rules) -> str:
    return f"op {mode.ops[-1]}" if mode.inside else "model code"
