"""Weights packed anew for the CPU kernels, in memory of their own.

A step of one token reads every weight once, and kernels read rows in tiles (zoo.quant.tiles) faster than rows apart.
Pages of the file that were copied are given back at once, so that memory holds one copy of the weights all the while.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator

import psutil
from torch import Tensor, nn

from zoo.formats.ggml import GGML_BY_NAME
from zoo.kernels.native import call
from zoo.kernels.native.pool import Pool, Session, using
from zoo.quant import tiles
from zoo.quant.tensor import QuantTensor
from zoo.weights import pages

_CHUNK_BYTES = 16 << 20
_ALIGN = 64


def pack_weights(
    model: nn.Module,
    pool: Pool,
    *,
    model_bytes: int = 0,
    release: Callable[[int, int], None] = lambda address, nbytes: None,
    progress: Callable[[str, int, int], None] | None = None,
) -> str:
    """Pack the quantised matrices of a model for a pool's kernels; stacks stay as they are.

    `model_bytes`: all weights of the model, which must fit into memory, too. `release(address, nbytes)` is called for
    memory that was copied. Returns "", or why nothing was packed.
    """
    found = list(_matrices(model, pool))
    total = sum(_packed_bytes(weight, pool) for _, _, weight in found)
    available = psutil.virtual_memory().available
    if total and (total > available // 2 or model_bytes > available):
        need = f"{total / 1e9:.1f} of {max(total, model_bytes) / 1e9:.1f} GB would be packed"
        return f"{need}, and {available / 1e9:.1f} GB of memory are available"
    if not total:
        return ""
    memory, room = pages.memory(total)
    done = 0
    packed: dict[int, QuantTensor] = {}
    with using(Session(pool)):
        for module, name, weight in found:
            if id(weight) not in packed:
                size = _packed_bytes(weight, pool)
                packed[id(weight)] = _pack(weight, room[done : done + size], pool, release)
                done += size
                if progress is not None:
                    progress("pack", done, total)
            setattr(module, name, packed[id(weight)])
    # Once more as a whole: pages that two matrices share were left, and reading one maps pages around it.
    for first, end in _runs([weight.parts["data"] for _, _, weight in found]):
        release(first, end - first)
    pages.collapse_later(memory, room, lambda: pool.calls)
    return ""


def _runs(parts: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Memory of tensors as ranges of addresses, those with less than a page between them together."""
    runs: list[tuple[int, int]] = []
    for first, end in sorted((part.data_ptr(), part.data_ptr() + part.nbytes) for part in parts):
        if runs and first - runs[-1][1] < mmap.PAGESIZE:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((first, end))
    return runs


def _matrices(model: nn.Module, pool: Pool) -> Iterator[tuple[nn.Module, str, QuantTensor]]:
    """The weights to pack. They are plain attributes: torch knows no packed parameters."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if not isinstance(value, QuantTensor) or value.layout != "ggml" or value.ndim != 2 or value.block:
                continue
            if len(value) and pool.tile_rows(GGML_BY_NAME[value.type].id) and value.parts["data"].is_contiguous():
                yield module, name, value


def _packed_bytes(weight: QuantTensor, pool: Pool) -> int:
    rows, row_bytes = pool.tile_rows(GGML_BY_NAME[weight.type].id), weight.parts["data"].shape[1]
    return -(-(-(-len(weight) // rows) * rows * row_bytes) // _ALIGN) * _ALIGN


def _pack(weight: QuantTensor, room: Tensor, pool: Pool, release: Callable[[int, int], None]) -> QuantTensor:
    """One matrix, a few tiles at a time, so that no more than those are there twice."""
    rows, data = pool.tile_rows(GGML_BY_NAME[weight.type].id), weight.parts["data"]
    row_bytes = data.shape[1]
    step = max(1, _CHUNK_BYTES // (rows * row_bytes)) * rows
    for start in range(0, len(weight), step):
        part = call.weight(weight[start : start + step])
        assert part is not None, f"{weight!r} is not what kernels read"
        pool.pack(part, room.data_ptr() + start * row_bytes)
        release(data.data_ptr() + start * row_bytes, part.rows * row_bytes)
    count = -(-len(weight) // rows)
    packed = room[: count * rows * row_bytes].view(count, rows * row_bytes)
    return QuantTensor(weight.type, weight.shape, {"data": packed}, tiles.LAYOUT)
