"""Every block type against gguf-py and against ggml's C functions, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray
from torch import Tensor

from oracle import ggml
from zoo.errors import WeightError
from zoo.formats.ggml import GGML_BY_NAME
from zoo.quant import dequant, tables
from zoo.quant.dequant import DEQUANT, dequantize, dequantize_fp8

DENSE = {"F32", "F16", "BF16"}
ONLY_C = {"Q8_K", "Q1_0", "Q2_0"}  # gguf-py cannot unpack these
INTEGERS = {"I8", "I16", "I32", "I64", "F64"}
COLUMNS = 512


def random_bytes(name: str, rows: int, seed: int = 0) -> NDArray[np.uint8]:
    """Any bytes: every field takes every value, f16 scales are infinite or NaN now and then."""
    row = GGML_BY_NAME[name].row_bytes(COLUMNS)
    return np.random.default_rng(seed).integers(0, 256, (rows, row), dtype=np.uint8)


def quantised(name: str, rows: int = 8) -> NDArray[np.uint8]:
    values = np.random.default_rng(1).standard_normal((rows, COLUMNS), dtype=np.float32)
    values[0] = 0
    values[1] *= 1e-6
    values[2] *= 1e3
    return ggml.quantize(values, GGML_BY_NAME[name].id, GGML_BY_NAME[name].row_bytes(COLUMNS))


def assert_same_bits(found: Tensor, expected: NDArray[np.float32]) -> None:
    """Equal to the sign of zero; a NaN equals a NaN."""
    same = (found.numpy().view(np.int32) == expected.view(np.int32)) | (np.isnan(found.numpy()) & np.isnan(expected))
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert same.all(), f"{(~same).sum()} of {same.size} differ, the first at {np.argwhere(~same)[0]}"


def test_every_float_type_of_ggml_is_defined() -> None:
    # Q8_1 is the form of activations: ggml itself has no way back to float, and no file stores it.
    assert set(DEQUANT) == set(GGML_BY_NAME) - INTEGERS - {"Q8_1"}


@pytest.mark.parametrize("name", sorted(set(DEQUANT) - ONLY_C))
@pytest.mark.parametrize("source", ["quantised", "random"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy on infinite scales
def test_equals_gguf_py(name: str, source: str) -> None:
    packed = quantised(name) if source == "quantised" else random_bytes(name, 300)
    expected = quants.dequantize(packed, GGMLQuantizationType[name])
    assert_same_bits(dequantize(name, torch.from_numpy(packed), COLUMNS), expected)


@pytest.mark.parametrize("name", sorted(set(DEQUANT) - DENSE))
@pytest.mark.parametrize("source", ["quantised", "random"])
def test_equals_ggml(name: str, source: str) -> None:
    # Q8_K is never quantised into a file: there is no quantize for it
    packed = quantised(name) if source == "quantised" and name != "Q8_K" else random_bytes(name, 300, seed=2)
    assert_same_bits(dequantize(name, torch.from_numpy(packed), COLUMNS), ggml.dequantize(packed, name, COLUMNS))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_half(name: str) -> None:
    packed = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    expected = quants.dequantize(packed, GGMLQuantizationType[name])
    assert_same_bits(dequantize(name, torch.from_numpy(packed), 1 << 16), expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy on infinite scales
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0"])
def test_every_scale(name: str) -> None:
    size = GGML_BY_NAME[name].block_bytes
    packed = np.random.default_rng(3).integers(0, 256, (1 << 16, size), dtype=np.uint8)
    packed[:, :2] = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    expected = quants.dequantize(packed, GGMLQuantizationType[name])
    assert_same_bits(dequantize(name, torch.from_numpy(packed), 32), expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy on the largest scale
@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
def test_every_fp4_scale(name: str) -> None:
    block = GGML_BY_NAME[name]
    scales = 1 if name == "MXFP4" else 4
    packed = np.random.default_rng(4).integers(0, 256, (256, block.block_bytes), dtype=np.uint8)
    packed[:, :scales] = np.arange(256, dtype=np.uint8)[:, None]
    expected = quants.dequantize(packed, GGMLQuantizationType[name])
    assert_same_bits(dequantize(name, torch.from_numpy(packed), block.block_elements), expected)


@pytest.mark.parametrize("name", ["IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"])
def test_codebook_is_that_of_gguf_py(name: str) -> None:
    quant = quants._type_traits[GGMLQuantizationType[name]]
    quant.init_grid()
    expected = torch.from_numpy(quant.grid[0, 0])
    assert torch.equal(tables.grid("IQ1" if name == "IQ1_S" else name, torch.device("cpu")), expected)


@pytest.mark.parametrize("name", sorted(DEQUANT))
def test_shape_chunks_and_dtype(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = torch.from_numpy(quantised(name) if name != "Q8_K" else random_bytes(name, 8, seed=5) // 2)
    whole = dequantize(name, packed, COLUMNS)
    monkeypatch.setattr(dequant, "CHUNK", 768)  # three K blocks: the last chunk is a single block
    assert torch.equal(dequantize(name, packed, COLUMNS), whole)
    assert torch.equal(dequantize(name, packed.view(2, 4, -1), COLUMNS), whole.view(2, 4, -1))
    assert torch.equal(dequantize(name, packed[::2], COLUMNS), whole[::2])
    assert dequantize(name, packed[:0], COLUMNS).shape == (0, COLUMNS)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(dequantize(name, packed, COLUMNS, dtype), whole.to(dtype))


@pytest.mark.parametrize("name", sorted(DEQUANT))
def test_a_default_device_and_dtype_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = torch.from_numpy(random_bytes(name, 4, seed=6))
    expected = dequantize(name, packed, COLUMNS).nan_to_num()
    for function in vars(tables).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # modules are built under it
            found = dequantize(name, packed, COLUMNS).nan_to_num()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def e4m3(code: int) -> float:
    """OCP 8-bit floating point, E4M3: bias 7, subnormals, no infinity."""
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return float("nan")
    return sign * (mantissa / 8 + (exponent > 0)) * 2.0 ** (max(exponent, 1) - 7)


def test_fp8_codes() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256)
    found = dequantize_fp8(codes, torch.ones(1, 1), (128, 256))
    assert_same_bits(found, np.array([[e4m3(code) for code in range(256)]], np.float32))
    assert_same_bits(found, codes.view(torch.float8_e4m3fn).float().numpy())


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((256, 256), (128, 128)),
        ((576, 200), (128, 128)),  # the last block is cut on both sides
        ((5, 7), (128, 128)),
        ((3, 130, 260), (128, 128)),
        ((300, 64), (1, 64)),  # a scale per row
        ((40, 96), (40, 96)),  # one scale
        ((64, 96), (16, 32)),
    ],
)
@pytest.mark.parametrize("chunk", [1 << 18, 4096])
def test_fp8_blocks(
    shape: tuple[int, ...], block: tuple[int, int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dequant, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    *stack, rows, columns = shape
    values = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(*stack, -(-rows // block[0]), -(-columns // block[1]), generator=generator)
    row, column = torch.arange(rows).unsqueeze(1) // block[0], torch.arange(columns) // block[1]
    expected = values.float() * scale[..., row, column]
    assert torch.equal(dequantize_fp8(values.view(torch.uint8), scale, block), expected)
    found = dequantize_fp8(values.view(torch.uint8), scale, block, torch.bfloat16)
    assert torch.equal(found, expected.to(torch.bfloat16))


@pytest.mark.parametrize("name", ["Q8_1", "I32", "Q4_K_M", "F8_E4M3", ""])
def test_unknown_type(name: str) -> None:
    with pytest.raises(WeightError, match=f"block type {name};.*known types: F32, .*Q4_K"):
        dequantize(name, torch.zeros(1, 36, dtype=torch.uint8), 32)


@pytest.mark.parametrize(
    ("data", "columns"),
    [
        (torch.zeros(2, 17, dtype=torch.uint8), 32),
        (torch.zeros(2, 18, dtype=torch.uint8), 64),
        (torch.zeros(2, 9, dtype=torch.uint8), 16),  # half a block
        (torch.zeros(2, 18, dtype=torch.int8), 32),
    ],
)
def test_rows_that_do_not_fit(data: Tensor, columns: int) -> None:
    with pytest.raises(WeightError, match=f"Q4_0 rows of {columns} columns .* rows of {data.shape[1]}"):
        dequantize("Q4_0", data, columns)
