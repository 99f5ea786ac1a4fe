"""The end of a step, which need not be computed for all of its tokens.

Of a prompt only the last token's logits are wanted, and behind the last attention no token looks at another. So the ops
from there on run on the wanted rows alone, which are first moved to the front of what they read: in the last layer only
keys, values and attention are left for the other tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.kernels.native import structs
from zoo.kernels.native.recorder import Arena


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of 32-bit numbers in memory: address, bytes from one row to the next, numbers of a row."""

    address: int
    stride: int
    width: int

    def array(self, rows: int) -> np.ndarray:
        """Its first rows, in place."""
        size = (rows - 1) * self.stride + 4 * self.width
        memory = (ctypes.c_byte * size).from_address(self.address)
        return np.ndarray((rows, self.width), np.int32, memoryview(memory), strides=(self.stride, 4))

    def overlaps(self, other: Matrix, rows: int) -> bool:
        """Whether the two share memory, with so many rows each."""
        return self.address < other._end(rows) and other.address < self._end(rows)

    def is_part_of(self, other: Matrix) -> bool:
        """Whether each row lies in the row of the same number of another."""
        skipped = self.address - other.address
        return self.stride == other.stride and 0 <= skipped <= 4 * (other.width - self.width)

    def _end(self, rows: int) -> int:
        return self.address + (rows - 1) * self.stride + 4 * self.width


@dataclass(frozen=True, slots=True)
class _Rows:
    """An op whose row t of every output depends on row t of its inputs alone."""

    count: int
    inputs: tuple[Matrix, ...]
    outputs: tuple[Matrix, ...]


def begin(ops: Sequence[ctypes.Structure], tokens: int) -> int:
    """The index from which on every op computes each of the tokens for itself."""
    index = len(ops)
    while index and (rows := _rows_of(ops[index - 1])) is not None and rows.count == tokens:
        index -= 1
    return index


def carried(ops: Sequence[ctypes.Structure], output: Matrix, tokens: int, arena: Arena) -> list[Matrix] | None:
    """What the ops of a tail read, and `output` has, that none of them wrote.

    None if its rows cannot be moved, because they share memory or are not the step's own, or if a row of what is read
    lies in other rows of what was written.
    """
    written: list[Matrix] = []
    found: list[Matrix] = []
    for inputs, outputs in (*((rows.inputs, rows.outputs) for rows in _all(ops)), ((output,), ())):
        for one in inputs:
            # Of several on the same buffer the last one is there.
            writer = next((other for other in reversed(written) if one.overlaps(other, tokens)), None)
            if writer is None:
                found.append(one)
            elif not one.is_part_of(writer):
                return None
        written += outputs
    distinct = list(dict.fromkeys(found))
    movable = all(one.stride >= 4 * one.width and arena.holds(one.address) for one in distinct)
    apart = not any(a.overlaps(b, tokens) for i, a in enumerate(distinct) for b in distinct[:i])
    return distinct if movable and apart else None


def _all(ops: Sequence[ctypes.Structure]) -> Iterator[_Rows]:
    for op in ops:
        rows = _rows_of(op)
        assert rows is not None, "no op of a tail"
        yield rows


def _rows_of(op: ctypes.Structure) -> _Rows | None:
    """None: its rows depend on each other, or on a position."""
    match op:
        case structs.Linear():
            parts = ctypes.cast(op.parts, ctypes.POINTER(structs.Part))[: op.count]
            outputs = [_matrix(part.y, part.ldy, part.weight.rows) for part in parts]
            return _Rows(op.m, _matrices((op.x, op.ldx, parts[0].weight.cols)), tuple(outputs))
        case structs.Glu():
            gate = ctypes.cast(op.parts, ctypes.POINTER(structs.Part))[0].weight
            return _Rows(op.m, _matrices((op.x, op.ldx, gate.cols)), _matrices((op.y, op.ldy, gate.rows)))
        case structs.Norm():
            inputs = (op.x, op.ldx, op.cols), (op.add, op.ld_add, op.cols)
            return _Rows(op.rows, _matrices(*inputs), _matrices(*((y, op.cols, op.cols) for y in (op.y, op.sum))))
        case structs.Route():
            chosen = _matrices(*((y, op.top_k, op.top_k) for y in (op.indices, op.weights)))
            return _Rows(op.tokens, _matrices((op.logits, op.ld, op.experts)), chosen)
        case structs.Moe():
            gate, down = (ctypes.cast(at, ctypes.POINTER(structs.Weight))[0] for at in (op.gate, op.down))
            chosen = _matrices(*((x, op.top_k, op.top_k) for x in (op.indices, op.weights)))
            inputs = (op.x, op.ldx, gate.cols), (op.add, op.ld_add, down.rows)
            return _Rows(op.tokens, (*_matrices(*inputs), *chosen), _matrices((op.y, down.rows, down.rows)))
        case structs.Elementwise() if op.what != structs.POSITION_SCALE:
            inputs = (op.a, op.lda, op.cols), (op.b, op.ldb, op.b_cols)
            return _Rows(op.rows, _matrices(*inputs), _matrices((op.y, op.cols, op.cols)))
        case _:
            return None


def _matrices(*given: tuple[int | None, int, int]) -> tuple[Matrix, ...]:
    return tuple(_matrix(address, stride, width) for address, stride, width in given if address)


def _matrix(address: int, stride: int, width: int) -> Matrix:
    return Matrix(address, 4 * stride, width)
