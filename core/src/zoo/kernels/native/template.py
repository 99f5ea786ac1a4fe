"""A step of a model as a list of ops for any number of tokens, to be run in one call.

The ops of two batches differ in nothing but counts: of tokens, of sequences. So a step is rehearsed with two sets of
counts, its ops taken down and not run, and each number that differs between the two must be the same multiple of one of
the counts. Before a run these numbers are written anew. A model whose ops depend on the counts in any other way, as
with a limit from which on it computes otherwise, breaks the contract.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.kernels.native import tail
from zoo.kernels.native.pool import Pool
from zoo.kernels.native.recorder import Arena, ContractBroken, Recorder, unleased
from zoo.kernels.native.tail import Matrix

Counts = tuple[int, ...]
"""What the numbers of ops may be multiples of; the number of tokens comes first."""


class Template:
    """A rehearsed step: run it after its inputs have been written.

    Its output is there until another step on the same arena is recorded, rehearsed or run.
    """

    def __init__(
        self, step: Callable[[Counts], Tensor], small: Counts, large: Counts, pool: Pool, arena: Arena
    ) -> None:
        """`step`: computes on inputs of these counts, which lie at the same places for all; gives [tokens, D].

        `large`: the most that will be asked for. Raises ContractBroken.
        """
        first, last = (_Rehearsal(step, counts, large[0], pool, arena) for counts in (small, large))
        self.output, self._kept = last.output, last.kept
        ops = [_words(op) for op in last.ops]
        self._words = np.concatenate(ops)
        starts = np.cumsum([0, *(len(op) for op in ops)])
        found = np.array(list(_multiples(first, last, small, large)), np.int64).reshape(-1, 3)
        if first.place != last.place:
            raise ContractBroken("the place of the output depends on the number of tokens")
        tails = [rehearsal.tail(arena) for rehearsal in (first, last)]
        begin, carried = tails[0] if tails[0] == tails[1] else (len(ops), [])
        self._carried = [matrix.array(large[0]) for matrix in carried]
        self._parts = [
            _Part(self._words, starts[low:high], found[(found[:, 0] >= starts[low]) & (found[:, 0] < starts[high])])
            for low, high in ((0, begin), (begin, len(ops)))
        ]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def run(self, pool: Pool, counts: Counts, wanted: tuple[np.ndarray, Counts] | None = None) -> Tensor:
        """Run every op in order, for so many: the rows of the output, or those that are wanted.

        `wanted`: indices of rows, ascending, and the counts that a step of these alone has, with which its tail runs.
        """
        first, last = self._parts
        first.run(pool, counts)
        if wanted is None or not last:
            last.run(pool, counts)
            output = self.output[: counts[0]]
            return output if wanted is None else output[torch.from_numpy(wanted[0])]
        rows, counts_of_rows = wanted
        if len(rows) < counts[0]:
            for array in self._carried:
                array[: len(rows)] = array[rows]
        if len(rows):
            last.run(pool, counts_of_rows)
        return self.output[: len(rows)]


class _Part:
    """Some ops of a template."""

    def __init__(self, words: np.ndarray, starts: np.ndarray, multiples: np.ndarray) -> None:
        """`words`: those of all ops; `starts`: where each op begins there; `multiples`: as `_multiples` gives them."""
        self._addresses = (ctypes.c_void_p * len(starts))(*(words.ctypes.data + 8 * starts).tolist())
        self._words = words
        self._where, self._which, self._factors = multiples.T

    def __len__(self) -> int:
        return len(self._addresses)

    def run(self, pool: Pool, counts: Counts) -> None:
        self._words[self._where] = self._factors * np.array(counts, np.int64)[self._which]
        if self._addresses:
            pool.execute(self._addresses)


class _Rehearsal:
    """The ops of a step of certain counts."""

    def __init__(self, step: Callable[[Counts], Tensor], counts: Counts, most: int, pool: Pool, arena: Arena) -> None:
        recorder = Recorder(arena, (counts[0], most))
        with recorder.taking_down(pool):
            output = step(counts)
            if not isinstance(output, Tensor) or output.shape[:1] != counts[:1]:
                raise ContractBroken("the output has no row for each token")
            self.output, self.place = unleased(output), (output.data_ptr(), output.stride(), output.shape[1:])
        self.ops, self.kept = recorder.ops, recorder.kept
        self._tokens = counts[0]

    def tail(self, arena: Arena) -> tuple[int, list[Matrix]]:
        """Where the tail begins and what is carried into it; the number of ops, and nothing, if there is none."""
        begin = tail.begin(self.ops, self._tokens)
        output = Matrix(self.output.data_ptr(), 4 * self.output.stride(0), self.output.shape[1])
        carried = tail.carried(self.ops[begin:], output, self._tokens, arena)
        return (len(self.ops), []) if carried is None else (begin, carried)


def _multiples(first: _Rehearsal, last: _Rehearsal, small: Counts, large: Counts) -> Iterator[tuple[int, int, int]]:
    """(place among the words of all ops, index of the count, factor) of each number that differs."""
    if [type(op) for op in first.ops] != [type(op) for op in last.ops] or len(first.kept) != len(last.kept):
        raise ContractBroken("other ops are called for other numbers of tokens")
    renamed = _renamed(first.kept, last.kept)
    start = 0
    for before, after in zip(first.ops, last.ops, strict=True):
        old, new = _words(before), _words(after)
        for index in np.flatnonzero(old != new):
            pair = int(old[index]), int(new[index])
            if renamed.get(pair[0]) == pair[1]:
                continue
            for which, counts in enumerate(zip(small, large, strict=True)):
                factor = pair[0] // counts[0]
                if pair == (factor * counts[0], factor * counts[1]):
                    yield start + int(index), which, factor
                    break
            else:
                raise ContractBroken(f"{type(after).__name__} depends on the number of tokens")
        start += len(new)


def _renamed(first: list[Any], last: list[Any]) -> dict[int, int]:
    """Addresses of what each rehearsal made for itself, with the same content, in the one and in the other."""
    pairs = [(old, new) for old, new in _flat(first, last) if old is not new]
    renamed = {
        old.data_ptr(): new.data_ptr()
        for old, new in pairs
        if isinstance(old, Tensor) and isinstance(new, Tensor)
        if old.data_ptr() != new.data_ptr() and torch.equal(old, new)
    }
    for old, new in pairs:
        if isinstance(old, ctypes.Array) and isinstance(new, ctypes.Array) and type(old) is type(new):
            words = zip(_words(old).tolist(), _words(new).tolist(), strict=True)
            if all(a == b or renamed.get(a) == b for a, b in words):
                renamed[ctypes.addressof(old)] = ctypes.addressof(new)
    return renamed


def _flat(first: Any, last: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(first, list | tuple) and isinstance(last, list | tuple) and len(first) == len(last):
        for old, new in zip(first, last, strict=True):
            yield from _flat(old, new)
    else:
        yield first, last


def _words(op: ctypes.Structure | ctypes.Array[Any]) -> np.ndarray:
    """A struct, or several, as 64-bit words."""
    return np.frombuffer(memoryview(op), np.int64)
