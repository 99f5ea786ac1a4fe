"""QuantTensor: views share memory, single rows are unpacked alone, bad parts are refused; `wrap` copies nothing."""

from __future__ import annotations

import gc
import mmap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from zoo.errors import UsageError, WeightError, ZooError
from zoo.formats.tensor import TensorInfo
from zoo.quant.dequant import dequantize
from zoo.quant.tensor import DENSE, QuantTensor, wrap

U8 = torch.uint8


def values(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def q8(*shape: int) -> tuple[QuantTensor, Tensor]:
    """A Q8_0 tensor and what gguf-py unpacks it to."""
    packed = quants.quantize(values(*shape), GGMLQuantizationType.Q8_0)
    dense = quants.dequantize(packed, GGMLQuantizationType.Q8_0)
    return QuantTensor("Q8_0", shape, {"data": torch.from_numpy(packed)}), torch.from_numpy(dense)


def fp8(*shape: int, block: tuple[int, int] = (128, 128)) -> tuple[QuantTensor, Tensor]:
    """A block-scaled FP8 tensor and its values."""
    *stack, rows, columns = shape
    data = torch.from_numpy(values(*shape)).to(torch.float8_e4m3fn)
    scale = torch.from_numpy(values(*stack, -(-rows // block[0]), -(-columns // block[1]), seed=1))
    spread = scale.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)[..., :rows, :columns]
    tensor = QuantTensor("F8_E4M3", shape, {"data": data.view(U8), "scale": scale}, block=block)
    return tensor, data.float() * spread


def test_attributes() -> None:
    tensor, dense = q8(6, 64)
    assert (tensor.type, tensor.shape, tensor.ndim, len(tensor), tensor.layout) == ("Q8_0", (6, 64), 2, 6, "ggml")
    assert tensor.nbytes == 6 * 2 * 34
    assert tensor.device == torch.device("cpu")
    assert repr(tensor) == "QuantTensor(Q8_0, [6, 64], 408 bytes, ggml, cpu)"
    assert torch.equal(tensor.dequantize(), dense)
    assert torch.equal(tensor.dequantize(torch.bfloat16), dense.to(torch.bfloat16))
    scaled, _ = fp8(130, 60)
    assert scaled.nbytes == 130 * 60 + 2 * 4


def test_it_cannot_be_changed() -> None:
    tensor, _ = q8(2, 32)
    parts: Any = tensor.parts
    with pytest.raises(AttributeError):
        tensor.shape = (4, 16)  # type: ignore[misc]
    with pytest.raises(TypeError):
        parts["data"] = torch.zeros(1)


def test_to_moves_all_parts() -> None:
    for tensor in (q8(2, 32)[0], fp8(4, 8)[0]):
        moved = tensor.to("meta")
        assert {part.device.type for part in moved.parts.values()} == {"meta"}
        assert (moved.type, moved.shape, moved.block, moved.nbytes) == (
            tensor.type,
            tensor.shape,
            tensor.block,
            tensor.nbytes,
        )
        assert torch.equal(tensor.to("cpu").dequantize(), tensor.dequantize())


@pytest.mark.parametrize("rows", [slice(2, 5), slice(None), slice(4, 100), slice(-2, None), slice(3, 3), slice(5, 2)])
def test_slice_is_a_view(rows: slice) -> None:
    tensor, dense = q8(6, 64)
    part = tensor[rows]
    assert torch.equal(part.dequantize(), dense[rows])
    assert part.shape == tuple(dense[rows].shape)
    if len(part):
        assert part.parts["data"].data_ptr() == tensor.parts["data"].data_ptr() + (rows.start or 0) % 6 * 68


def test_stack_of_matrices() -> None:
    tensor, dense = q8(3, 4, 32)
    assert torch.equal(tensor[1].dequantize(), dense[1])
    assert tensor[1].parts["data"].data_ptr() == tensor.parts["data"].data_ptr() + 4 * 34
    assert torch.equal(tensor[-1].dequantize(), dense[2])
    assert torch.equal(tensor[1:].dequantize(), dense[1:])
    assert [expert.shape for expert in tensor] == [(4, 32)] * 3
    stacked, expected = fp8(2, 130, 40)
    assert torch.equal(stacked[1].dequantize(), expected[1])
    assert stacked[1].parts["scale"].data_ptr() == stacked.parts["scale"].data_ptr() + 2 * 4
    assert torch.equal(stacked[1:].dequantize(), expected[1:])


def test_narrow_inside_a_stack() -> None:
    tensor, dense = q8(3, 4, 32)
    part = tensor.narrow(1, 1, 2)
    assert part.parts["data"].data_ptr() == tensor.parts["data"].data_ptr() + 34
    assert torch.equal(part.dequantize(), dense[:, 1:3])
    scaled, expected = fp8(2, 384, 40)
    assert torch.equal(scaled.narrow(1, 128, 200).dequantize(), expected[:, 128:328])


def test_view_changes_leading_dimensions() -> None:
    tensor, dense = q8(6, 64)
    assert torch.equal(tensor.view((2, 3, 64)).dequantize(), dense.view(2, 3, 64))
    assert tensor.view((2, 3, 64)).parts["data"].data_ptr() == tensor.parts["data"].data_ptr()
    assert torch.equal(tensor.view((1, 6, 64)).view((6, 64)).dequantize(), dense)
    scaled, expected = fp8(512, 40)
    heads = scaled.view((2, 256, 40))
    assert torch.equal(heads.dequantize(), expected.view(2, 256, 40))
    assert torch.equal(heads.view((512, 40)).dequantize(), expected)
    ragged, expected = fp8(2, 130, 40)
    assert torch.equal(ragged.view((1, 2, 130, 40)).dequantize(), expected.view(1, 2, 130, 40))


@pytest.mark.parametrize("rows", [slice(0, 128), slice(128, 256), slice(512, 576), slice(256, 300), slice(100, 100)])
def test_fp8_slice_from_a_block_is_exact(rows: slice) -> None:
    tensor, dense = fp8(576, 200)
    part = tensor[rows]
    assert torch.equal(part.dequantize(), dense[rows])
    if len(part):
        assert part.parts["data"].data_ptr() == tensor.parts["data"].data_ptr() + rows.start * 200
        assert part.parts["scale"].data_ptr() == tensor.parts["scale"].data_ptr() + rows.start // 128 * 2 * 4


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("index", [[3, 0, 3], [[1, 2], [5, 4]], []])
def test_rows(index: list[Any], dtype: torch.dtype) -> None:
    picked = torch.tensor(index, dtype=dtype)
    tensor, dense = q8(6, 64)
    assert torch.equal(tensor.rows(picked), dense[picked.long()])
    assert torch.equal(tensor.rows(picked, torch.float16), dense[picked.long()].half())
    scaled, expected = fp8(6, 200, block=(2, 128))
    assert torch.equal(scaled.rows(picked), expected[picked.long()])


def test_rows_unpacks_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def spy(type: str, data: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
        seen.append(tuple(data.shape))
        return dequantize(type, data, columns, dtype)

    monkeypatch.setattr("zoo.quant.tensor.dequantize", spy)
    q8(1000, 64)[0].rows(torch.tensor([7, 999]))
    assert seen == [(2, 68)]


MATRIX = q8(6, 64)[0]
STACK = q8(3, 4, 32)[0]
PACKED = QuantTensor("Q4_K", (4, 256), {"anything": torch.zeros(3)}, layout="vnni")


@pytest.mark.parametrize(
    ("misuse", "error", "message"),
    [
        (lambda: MATRIX[::2], UsageError, "has step 2; slice contiguous rows"),
        (lambda: MATRIX[::-1], UsageError, "has step -1"),
        (lambda: MATRIX[0], UsageError, r"no stack of matrices; rows\(\) unpacks"),
        (lambda: STACK[3], UsageError, "index 3 is outside .* it has 3 matrices"),
        (lambda: STACK[-4], UsageError, "index -4 is outside"),
        (lambda: MATRIX.narrow(0, 4, 3), UsageError, "no entries 4:7 in dim 0 of QuantTensor"),
        (lambda: MATRIX.narrow(0, -1, 1), UsageError, "no entries -1:0"),
        (lambda: MATRIX.narrow(0, 3, -1), UsageError, "no entries 3:2"),
        (lambda: MATRIX.narrow(1, 0, 32), UsageError, "in dim 1"),
        (lambda: MATRIX.view((6, 32)), UsageError, "no view .6, 32.; keep columns"),
        (lambda: MATRIX.view((4, 64)), UsageError, "no view .4, 64."),
        (lambda: MATRIX.view((-1, 64)), UsageError, "no view .-1, 64."),
        (lambda: MATRIX.view(()), UsageError, "no view"),
        (lambda: STACK.narrow(1, 0, 2).view((6, 32)), UsageError, "is a view with gaps"),
        (lambda: MATRIX.rows(torch.tensor([6])), UsageError, r"row index is outside 0\.\.5 of QuantTensor"),
        (lambda: MATRIX.rows(torch.tensor([-1])), UsageError, "row index is outside"),
        (lambda: MATRIX.rows(torch.tensor([1.0])), UsageError, "by torch.float32; take a matrix"),
        (lambda: STACK.rows(torch.tensor([1])), UsageError, "take a matrix"),
        (lambda: fp8(576, 40)[0][64:192], WeightError, "row 64 of .* lies inside a scale block of 128 rows; start at"),
        (lambda: fp8(2, 576, 40)[0].narrow(1, 1, 2), WeightError, "row 1 of .* lies inside a scale block"),
        (lambda: fp8(576, 40)[0].view((3, 192, 40)), WeightError, "would cut blocks of scales; .* multiple of 128"),
        (lambda: fp8(2, 64, 40)[0].view((128, 40)), WeightError, "would cut blocks of scales"),
        (lambda: fp8(2, 64)[0].view((1, 1, 2, 64)).view((64,)), ZooError, "no view"),
        (lambda: PACKED[:2], UsageError, r"\(Q4_K, \[4, 256\], 12 bytes, vnni, cpu\) is in the layout of a kernel"),
        (lambda: PACKED.view((2, 2, 256)), UsageError, "layout of a kernel"),
        (lambda: PACKED.rows(torch.tensor([1])), UsageError, "layout of a kernel"),
        (lambda: PACKED.dequantize(), UsageError, "layout of a kernel"),
    ],
)
def test_misuse(misuse: Callable[[], object], error: type[ZooError], message: str) -> None:
    with pytest.raises(error, match=message):
        misuse()


def test_a_kernels_layout_travels() -> None:
    assert PACKED.to("meta").layout == "vnni"
    assert PACKED.nbytes == 12


@pytest.mark.parametrize(
    ("type", "shape", "parts", "block", "message"),
    [
        ("Q4_K_M", (2, 256), {}, None, "block type Q4_K_M; known types: F32, .*F8_E4M3"),
        ("Q8_1", (2, 32), {"data": torch.zeros(2, 36, dtype=U8)}, None, "block type Q8_1"),
        ("I32", (2, 32), {"data": torch.zeros(2, 128, dtype=U8)}, None, "block type I32"),
        ("Q8_0", (2, 32), {"data": torch.zeros(2, 33, dtype=U8)}, None, r"needs parts .*\(2, 34\).*found .*\(2, 33\)"),
        ("Q8_0", (2, 32), {"data": torch.zeros(3, 34, dtype=U8)}, None, "needs parts"),
        ("Q8_0", (2, 32), {"data": torch.zeros(2, 34, dtype=torch.int8)}, None, "needs parts .*found .*int8"),
        ("Q8_0", (2, 32), {"bytes": torch.zeros(2, 34, dtype=U8)}, None, "needs parts .*found .*bytes"),
        ("Q8_0", (2, 32), {"data": torch.zeros(2, 34, dtype=U8), "scale": torch.zeros(1)}, None, "needs parts"),
        ("Q8_0", (2, 48), {"data": torch.zeros(2, 51, dtype=U8)}, None, "whole blocks of 32"),
        ("Q8_0", (), {"data": torch.zeros(34, dtype=U8)}, None, "whole blocks of 32"),
        ("Q8_0", (2, 32), {"data": torch.zeros(2, 34, dtype=U8)}, (1, 32), "only FP8 has a scale block"),
        ("F8_E4M3", (2, 8), {"data": torch.zeros(2, 8, dtype=U8)}, None, "with block="),
        ("F8_E4M3", (2, 8), {"data": torch.zeros(2, 8, dtype=U8)}, (0, 8), "with block="),
        ("F8_E4M3", (8,), {"data": torch.zeros(8, dtype=U8)}, (1, 8), "with block="),
        ("F8_E4M3", (2, 8), {"data": torch.zeros(2, 8, dtype=U8)}, (2, 8), "needs parts .*scale"),
        (
            "F8_E4M3",
            (3, 8),
            {"data": torch.zeros(3, 8, dtype=U8), "scale": torch.zeros(1, 1)},
            (2, 8),
            r"needs parts .*\(2, 1\)",
        ),
        (
            "F8_E4M3",
            (2, 8),
            {"data": torch.zeros(2, 8, dtype=U8), "scale": torch.zeros(1, 1, dtype=torch.bfloat16)},
            (2, 8),
            "needs parts .*found .*bfloat16",
        ),
    ],
)
def test_parts_that_contradict(
    type: str, shape: tuple[int, ...], parts: dict[str, Tensor], block: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(WeightError, match=message):
        QuantTensor(type, shape, parts, block=block)


def info(type: str, shape: tuple[int, ...], nbytes: int) -> TensorInfo:
    return TensorInfo("blk.0.ffn_up.weight", type, shape, Path("model.gguf"), 0, nbytes)


def mapped(path: Path, content: bytes) -> memoryview:
    """Read-only pages, as weights come."""
    path.write_bytes(content)
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@pytest.mark.parametrize("name", sorted(DENSE))
def test_wrap_dense(name: str, tmp_path: Path) -> None:
    dtype = DENSE[name]
    content = bytes(range(2)) * (6 * dtype.itemsize // 2)
    data = mapped(tmp_path / "weights", content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = wrap(info(name, (2, 3), len(content)), data)
    assert isinstance(tensor, Tensor)
    assert (tensor.dtype, tuple(tensor.shape)) == (dtype, (2, 3))
    assert tensor.data_ptr() == np.frombuffer(data, np.uint8).ctypes.data
    assert tensor.view(U8).numpy().tobytes() == content


def test_wrap_of_an_unaligned_offset(tmp_path: Path) -> None:
    expected = values(2, 3)
    data = mapped(tmp_path / "weights", b"\0" * 3 + expected.tobytes())[3:]
    tensor = wrap(info("F32", (2, 3), 24), data)
    assert isinstance(tensor, Tensor)
    assert torch.equal(tensor, torch.from_numpy(expected))
    assert tensor.data_ptr() % 4 == 0


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_wrap_blocks(offset: int, tmp_path: Path) -> None:
    packed = quants.quantize(values(2, 3, 64), GGMLQuantizationType.Q5_1)
    data = mapped(tmp_path / "weights", b"\0" * offset + packed.tobytes())[offset:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = wrap(info("Q5_1", (2, 3, 64), packed.nbytes), data)
    assert isinstance(tensor, QuantTensor)
    assert tensor.shape == (2, 3, 64)
    assert tensor.parts["data"].data_ptr() == np.frombuffer(data, np.uint8).ctypes.data
    assert torch.equal(tensor.dequantize(), torch.from_numpy(quants.dequantize(packed, GGMLQuantizationType.Q5_1)))


def test_wrap_keeps_the_memory(tmp_path: Path) -> None:
    expected = values(64, 64)
    tensor = wrap(info("F32", (64, 64), expected.nbytes), memoryview(expected.tobytes()))
    gc.collect()
    other = [bytes(expected.nbytes) for _ in range(20)]
    assert isinstance(tensor, Tensor)
    assert torch.equal(tensor, torch.from_numpy(expected))
    assert len(other) == 20


def test_wrap_scalar_and_empty() -> None:
    scalar = wrap(info("F32", (), 4), memoryview(np.float32(2.5).tobytes()))
    assert isinstance(scalar, Tensor)
    assert (scalar.shape, scalar.item()) == ((), 2.5)
    empty = wrap(info("BF16", (0, 7), 0), memoryview(b""))
    assert isinstance(empty, Tensor)
    assert (empty.shape, empty.dtype) == ((0, 7), torch.bfloat16)
    none = wrap(info("Q4_K", (0, 256), 0), memoryview(b""))
    assert isinstance(none, QuantTensor)
    assert none.dequantize().shape == (0, 256)


@pytest.mark.parametrize(
    ("type", "shape", "found", "message"),
    [
        ("Q9_9", (2, 32), 64, "Q9_9 .2, 32., a type that zoo cannot read; known types: BF16"),
        ("Q8_1", (2, 32), 72, "Q8_1 .2, 32., a type that zoo cannot read"),
        ("Q8_0", (2, 33), 68, "no whole number of blocks; a block has 32 elements"),
        ("Q8_0", (2, 32), 67, "needs 68 bytes, found 67; the file is damaged"),
        ("F32", (2, 32), 257, "needs 256 bytes, found 257"),
        ("Q4_0", (), 18, "no whole number of blocks"),
    ],
)
def test_wrap_names_the_tensor(type: str, shape: tuple[int, ...], found: int, message: str) -> None:
    with pytest.raises(WeightError, match=f"model.gguf: tensor blk.0.ffn_up.weight is .*{message}"):
        wrap(info(type, shape, found), memoryview(bytes(found)))
