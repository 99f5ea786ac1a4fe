"""Rows of blocks packed in tiles, as CPU kernels read them fastest.

A tile holds the same block of a few rows side by side, then the next block. In it an element of a block is followed by
the same element of the next row, and elements come in the order in which kernels use them. So a tile is as large as its
rows; the last one of a matrix is filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from zoo.formats.ggml import GGML_BY_NAME

LAYOUT = "tiles"
"""`QuantTensor.layout` of such a weight; its part `data` is uint8 [tiles, rows of a tile * row_bytes]."""

# The elements of a block in their order: (from, to, width) of a run of them, or (from, to, width, other) of two such
# runs, an element of one and an element of the other in turn.
_ORDER: Mapping[str, tuple[tuple[int, ...], ...]] = MappingProxyType(
    {
        "Q4_0": ((0, 2, 2), (2, 18, 4)),
        "Q4_1": ((0, 4, 2), (4, 20, 4)),
        "Q5_0": ((0, 2, 2), (2, 22, 4)),
        "Q5_1": ((0, 4, 2), (4, 24, 4)),
        "Q8_0": ((0, 2, 2), (2, 34, 4)),
        "IQ4_NL": ((0, 2, 2), (2, 18, 4)),
        "MXFP4": ((0, 1, 1), (1, 17, 4)),
        "Q2_K": ((80, 84, 2), (0, 80, 4)),
        "Q3_K": ((96, 108, 4), (0, 32, 4, 32), (64, 96, 4), (108, 110, 2)),
        "Q4_K": ((0, 4, 2), (4, 144, 4)),
        "Q5_K": ((0, 4, 2), (4, 16, 4), (16, 48, 4, 48), (80, 176, 4)),
        "Q6_K": ((192, 208, 4), (0, 32, 4, 128), (32, 64, 4), (64, 96, 4, 160), (96, 128, 4), (208, 210, 2)),
        "IQ4_XS": ((0, 136, 4),),
    }
)


def tile_rows(type: str, columns: int, data: Tensor) -> int:
    """Rows of a tile of `data` [tiles, ...]."""
    return data.shape[1] // GGML_BY_NAME[type].row_bytes(columns)


def unpack(type: str, columns: int, data: Tensor) -> Tensor:
    """Tiles uint8 [n, ...] -> rows as they lie in a file, uint8 [n * rows of a tile, row_bytes]."""
    size, rows = GGML_BY_NAME[type].block_bytes, tile_rows(type, columns, data)
    blocks = data.reshape(len(data), columns // GGML_BY_NAME[type].block_elements, rows * size)
    out = data.new_empty(len(data), rows, blocks.shape[1], size)
    place = 0
    for start, stop, width, *others in _ORDER[type]:
        firsts, count = (start, *others), (stop - start) // width
        end = place + rows * count * len(firsts) * width
        run = blocks[:, :, place:end].unflatten(2, (count, len(firsts), rows, width))
        for number, first in enumerate(firsts):
            out[..., first : first + stop - start] = run[:, :, :, number].permute(0, 3, 1, 2, 4).flatten(3)
        place = end
    return out.view(len(data) * rows, blocks.shape[1] * size)
