"""Which implementation of an op answers on which device.

A backend is a row of BACKENDS: it names its devices and a verifier that says whether it can run here and why not.
Backend `fast` implements op `linear` if the module `zoo.kernels.linear.fast` exists and has a function `linear`.
The reference implements every op on every device, so an op always has an answer; `zoo doctor` shows which one it is.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zoo.kernels.native import library as native

OPS = (
    "linear",
    "head_linear",
    "glu",
    "gate",
    "activate",
    "add",
    "embedding",
    "rms_norm",
    "layer_norm",
    "rotary",
    "position_scale",
    "attend",
    "attend_latent",
    "route",
    "moe",
    "softcap",
    "sample",
)

# The folder of an op is its name, except for ops that share one.
_FOLDERS = {"attend_latent": "attend"}


@dataclass(frozen=True, slots=True)
class Backend:
    """One family of implementations. `verify()` returns (usable, reason); the reason is shown when it is not usable."""

    name: str
    devices: frozenset[str]
    verify: Callable[[], tuple[bool, str]]


@dataclass(frozen=True, slots=True)
class Choice:
    """What answers an op on a device, and why faster backends do not."""

    op: str
    device: str
    backend: str
    refused: tuple[tuple[str, str], ...]


REFERENCE = Backend("reference", frozenset({"cpu", "cuda"}), lambda: (True, "plain torch"))

# Fastest first. The reference comes last and is always usable.
BACKENDS: tuple[Backend, ...] = (Backend("cpu", frozenset({"cpu"}), native.usable), REFERENCE)


def choose(op: str, device: str) -> Choice:
    """The first usable backend of `op` for a device type ("cpu", "cuda")."""
    refused = []
    for backend in BACKENDS:
        if device not in backend.devices and backend is not REFERENCE:
            continue
        if importlib.util.find_spec(_module(backend.name, op)) is None:
            refused.append((backend.name, "does not implement this op"))
            continue
        # The verifier speaks first: importing the module of a backend that cannot run here may fail.
        usable, reason = backend.verify()
        if usable and _implements(backend, op):
            return Choice(op, device, backend.name, tuple(refused))
        refused.append((backend.name, "does not implement this op" if usable else reason))
    raise AssertionError("the reference implements every op")


@functools.cache
def implementation(op: str, device: str) -> Callable[..., Any]:
    """The function that answers `op` on a device type. Cached: a verifier runs once per process, op and device."""
    function: Callable[..., Any] = getattr(importlib.import_module(_module(choose(op, device).backend, op)), op)
    return function


def _module(backend: str, op: str) -> str:
    return f"zoo.kernels.{_FOLDERS.get(op, op)}.{backend}"


def _implements(backend: Backend, op: str) -> bool:
    return hasattr(importlib.import_module(_module(backend.name, op)), op)
