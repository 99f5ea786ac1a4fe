"""Rows of blocks packed in tiles, as CPU kernels read them fastest.

A tile holds the same block of a few rows side by side, then the next block. In it an element of a block (four bytes,
or what `_NARROW` says) is followed by the same element of the next row. So a tile is as large as its rows; the last one
of a matrix is filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from zoo.formats.ggml import GGML_BY_NAME

LAYOUT = "tiles"
"""`QuantTensor.layout` of such a weight; its part `data` is uint8 [tiles, rows of a tile * row_bytes]."""

# Bytes [from, to) of a block that are elements of another width: scales in half precision, an exponent.
_NARROW: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "Q4_0": (0, 2, 2),
        "Q4_1": (0, 4, 2),
        "Q5_0": (0, 2, 2),
        "Q5_1": (0, 4, 2),
        "Q8_0": (0, 2, 2),
        "IQ4_NL": (0, 2, 2),
        "MXFP4": (0, 1, 1),
        "Q2_K": (80, 84, 2),
        "Q3_K": (108, 110, 2),
        "Q4_K": (0, 4, 2),
        "Q5_K": (0, 4, 2),
        "Q6_K": (208, 210, 2),
        "IQ4_XS": (0, 0, 4),
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
    start, stop, width = _NARROW[type]
    for first, last, step in ((0, start, 4), (start, stop, width), (stop, size, 4)):
        if first < last:
            part = blocks[:, :, rows * first : rows * last].unflatten(2, (-1, rows, step))
            out[..., first:last] = part.permute(0, 3, 1, 2, 4).flatten(3)
    return out.view(len(data) * rows, blocks.shape[1] * size)
