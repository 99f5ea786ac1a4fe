"""Thread pools, and which one answers here."""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from zoo.errors import CapacityError
from zoo.kernels.native import library, structs

if TYPE_CHECKING:
    from zoo.kernels.native.recorder import Recorder


class Pool:
    """Threads that run ops of one instruction set; they sleep while nothing is asked of them.

    `threads` counts the caller, who works too. Two pools may live side by side; calls to one pool queue.
    """

    def __init__(self, threads: int | None = None) -> None:
        """`threads` None: one per physical core that this process may use."""
        self.threads = physical_cores() if threads is None else threads
        self.isa = library.instruction_set()
        self._library = library.load()
        self.handle = self._library.zoo_pool_create(self.isa.encode(), self.threads)
        if not self.handle:
            raise CapacityError(f"no pool of {self.threads} threads can be made", remedy="use fewer --threads")
        self._process = os.getpid()
        self.calls = 0  # begun and ended
        self._end = weakref.finalize(self, _destroy, self._library, self.handle, self._process)
        # Not when the process ends: a daemon thread may be in the middle of a call then, on memory that would be freed.
        self._end.atexit = False
        self.has_type = functools.cache(self._has_type)
        self.tile_rows = functools.cache(self._tile_rows)

    def execute(self, ops: ctypes.Array[ctypes.c_void_p]) -> None:
        """Run ops by their addresses, in order."""
        assert os.getpid() == self._process, "threads do not survive a fork: load the model in the child"
        self.calls += 1
        failed = self._library.zoo_execute(self.handle, ops, len(ops))
        self.calls += 1
        assert not failed, f"op {failed - 1} has a weight type without a kernel; the caller asks has_type first"

    def read_s(self, data: torch.Tensor) -> None:
        """Read every byte of a tensor with all threads; for a measurement of the memory's bandwidth."""
        self._library.zoo_read(self.handle, data.data_ptr(), data.nbytes)

    def pack(self, weight: structs.Weight, out: int) -> None:
        """Pack a raw matrix, or whole tiles of its rows, to the address `out` with all threads. See zoo.quant.tiles."""
        self._library.zoo_pack(self.handle, ctypes.addressof(weight), out)

    def _has_type(self, type: int) -> bool:
        return bool(self._library.zoo_has_type(self.handle, type))

    def _tile_rows(self, type: int) -> int:
        return int(self._library.zoo_tile_rows(self.handle, type))


class Session:
    """What ops called here run on: a pool, and the recorder that takes them down, if any.

    `step`: how many tokens the layers of the model compute now, and from which one on they belong to prompts.
    """

    __slots__ = ("pool", "recorder", "step")

    def __init__(self, pool: Pool, recorder: Recorder | None = None) -> None:
        self.pool = pool
        self.recorder = recorder
        self.step: tuple[int, int] | None = None


_SESSION: ContextVar[Session | None] = ContextVar("zoo_native_session", default=None)


def session() -> Session:
    """The session of the caller's context; outside of any, one on a pool that the process shares."""
    return _SESSION.get() or _shared()


@contextmanager
def using(session: Session) -> Iterator[None]:
    """Ops called inside run on this session."""
    token = _SESSION.set(session)
    try:
        yield
    finally:
        _SESSION.reset(token)


@functools.cache
def _shared() -> Session:
    return Session(Pool())


def _destroy(library: ctypes.CDLL, handle: int, process: int) -> None:
    if os.getpid() == process:  # a forked child has the handle, but not the threads
        library.zoo_pool_destroy(handle)


def physical_cores() -> int:
    """Physical cores among the processors that this process may use, at most what its control group grants."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_siblings(processor) for processor in allowed}
    return max(1, min(len(cores), _granted()))


def _siblings(processor: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(processor)


def _granted() -> int:
    """Whole processors of the control group's quota (cgroup v2)."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return 1 << 16
    return 1 << 16 if quota == "max" else max(1, int(quota) // int(period))
