"""ggml's own quantisation and dequantisation, by ctypes on the library inside the xllamacpp wheel.

gguf-py quantises the legacy types only; `quantize` makes rows of every type. `dequantize` is a second opinion, and the
only one on types that gguf-py cannot unpack. All arguments are plain pointers and counts, so no struct layout matters.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@cache
def library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None, "the tests need the xllamacpp wheel"
    assert spec.origin is not None, "xllamacpp is a folder without code"
    (path,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    found = ctypes.CDLL(str(path))
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return found


def quantize(rows_f32: NDArray[np.float32], type_id: int, row_bytes: int) -> NDArray[np.uint8]:
    """float32 [rows, columns] -> uint8 [rows, row_bytes]. Types that weigh their errors get equal weights."""
    rows = np.ascontiguousarray(rows_f32, dtype=np.float32)
    count, columns = rows.shape
    packed = np.zeros((count, row_bytes), np.uint8)
    weights = np.ones(columns, np.float32)
    written = library().ggml_quantize_chunk(
        type_id, rows.ctypes.data, packed.ctypes.data, 0, count, columns, weights.ctypes.data
    )
    assert written == packed.nbytes, f"type {type_id}: ggml wrote {written} bytes, {packed.nbytes} were expected"
    return packed


def dequantize(packed: NDArray[np.uint8], type_name: str, columns: int) -> NDArray[np.float32]:
    """uint8 [rows, row_bytes] -> float32 [rows, columns] by the C reference function of a block type."""
    packed = np.ascontiguousarray(packed)
    out = np.zeros((len(packed), columns), np.float32)
    name = type_name if type_name.endswith("_K") else type_name.lower()
    function = getattr(library(), f"dequantize_row_{name.replace('Q', 'q')}")
    function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    for row, target in zip(packed, out, strict=True):
        function(row.ctypes.data, target.ctypes.data, columns)
    return out
