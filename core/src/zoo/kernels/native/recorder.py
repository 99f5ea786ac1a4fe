"""A step of a model as a list of ops on fixed buffers, to be run again in one call.

While a recorder is active the ops of zoo run and are taken down; what they return lies in an arena whose memory is
handed on when a tensor dies, so a recording needs as much memory as one step. Whatever torch computes between the ops
would be missing from the list, so it ends the recording: the model has broken the contract and is run op by op.
"""

from __future__ import annotations

import ctypes
import functools
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.kernels.native.pool import Pool, Session, using

_ALIGN = 64


class ContractBroken(Exception):
    """The model did something that a recording cannot hold; says what."""


class Arena:
    """Buffers by size, lent to tensors and taken back when their storage dies.

    Sizes are powers of two, so that recordings of nearly equal batches share buffers: all of them together need a few
    times what the largest needs. What is not written of a buffer takes no memory. Of the free buffers of a size the
    oldest is lent, so that the same requests in the same order get the same addresses again.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[tuple[int, np.ndarray]]] = {}
        self._spans: list[tuple[int, int]] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, *, room: int = 0) -> Tensor:
        """An uninitialised tensor on lent memory, of `room` bytes if it needs no more."""
        count = math.prod(shape)
        nbytes = max(_ALIGN, 1 << (max(room, count * dtype.itemsize) - 1).bit_length())
        free = self._free.setdefault(nbytes, [])
        if not free:
            buffer = _aligned(nbytes)
            free.append((len(self._spans), buffer))
            self._spans.append((buffer.ctypes.data, buffer.ctypes.data + nbytes))
        lease = _Lease(free, heapq.heappop(free))
        # Shaped by numpy: views of torch take longer, the more so while a recorder looks on.
        return torch.from_numpy(np.ndarray(shape, _numpy_dtype(dtype), np.asarray(lease)))

    def holds(self, address: int) -> bool:
        """Whether one of its buffers, lent or not, lies there."""
        return any(start <= address < end for start, end in self._spans)


class _Lease:
    """What keeps a buffer out of the arena: numpy holds it as long as a storage of torch lies on the buffer."""

    def __init__(self, home: list[tuple[int, np.ndarray]], lent: tuple[int, np.ndarray]) -> None:
        self._home = home
        self._lent = lent
        self.__array_interface__ = lent[1].__array_interface__

    def __del__(self) -> None:
        heapq.heappush(self._home, self._lent)


@functools.cache
def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return np.dtype(str(dtype).removeprefix("torch."))


def _aligned(nbytes: int) -> np.ndarray:
    raw = np.empty(nbytes + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + nbytes]


class Program:
    """A recorded step: run it after its inputs have been written. `outputs` are what the step gave, and gives again.

    They are there until another program on the same arena is recorded or run.
    """

    def __init__(self, ops: Sequence[ctypes.Structure], kept: Sequence[Any], outputs: tuple[Tensor, ...]) -> None:
        self.outputs = outputs
        self._kept = (ops, kept)
        self._addresses = (ctypes.c_void_p * len(ops))(*(ctypes.addressof(op) for op in ops))

    def __len__(self) -> int:
        return len(self._addresses)

    def run(self, pool: Pool) -> None:
        """Run every op in order."""
        pool.execute(self._addresses)


class Recorder:
    """Takes down the ops of one step.

    `rehearsal`: its tokens and the most that a step has; ops are not run then, and outputs have room for the most.
    """

    def __init__(self, arena: Arena, rehearsal: tuple[int, int] | None = None) -> None:
        self.arena = arena
        self.rehearsal = rehearsal
        self.ops: list[ctypes.Structure] = []
        self.kept: list[Any] = [arena]
        self.trusted = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An output, in the arena."""
        room = 0
        if self.rehearsal is not None and shape and shape[0] % self.rehearsal[0] == 0:
            tokens, most = self.rehearsal
            room = math.prod(shape) * dtype.itemsize // tokens * most
        return self.arena.empty(shape, dtype, room=room)

    def add(self, op: ctypes.Structure, kept: Sequence[Any]) -> None:
        """The next op, with what else its addresses point to and nobody else may keep alive."""
        self.ops.append(op)
        self.kept.extend(kept)

    @contextmanager
    def taking_down(self, pool: Pool) -> Iterator[None]:
        """Ops called inside are taken down. Raises ContractBroken where anything else computes."""
        with using(Session(pool, self)), _Watch(self):
            yield

    @contextmanager
    def trust(self) -> Iterator[None]:
        """Torch may compute inside: constants, which are the same at every step."""
        self.trusted += 1
        try:
            yield
        finally:
            self.trusted -= 1


def record(step: Callable[[], tuple[Tensor, ...]], pool: Pool, arena: Arena) -> Program:
    """Run a step once and take it down. Raises ContractBroken, after which the step has not run to its end."""
    recorder = Recorder(arena)
    with recorder.taking_down(pool):
        outputs = tuple(unleased(output) for output in step())
    return Program(recorder.ops, recorder.kept, outputs)


def unleased(x: Tensor) -> Tensor:
    """The same values, on a buffer that goes back to the arena when x dies: the next step may write there."""
    storage = x.untyped_storage()
    memory = (ctypes.c_byte * storage.nbytes()).from_address(storage.data_ptr())
    return torch.frombuffer(memory, dtype=x.dtype).as_strided(x.shape, x.stride(), x.storage_offset())


class _Watch(TorchDispatchMode):
    """Lets views through and stops at everything else that torch does to data."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch imports its compiler at the first op, which takes more than a second; nothing here is compiled.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._recorder.trusted or _is_view(func, args, result):
            return result
        raise ContractBroken(f"{func} computes between zoo's ops")


def _is_view(func: Any, args: Sequence[Any], result: Any) -> bool:
    if func._schema.is_mutable:
        return False
    results = result if isinstance(result, list | tuple) else (result,)
    if not results or not all(isinstance(value, Tensor) for value in results):
        return False
    sources = {value.untyped_storage().data_ptr() for value in args if isinstance(value, Tensor)}
    return all(value.untyped_storage().data_ptr() in sources for value in results)
