"""A weight as it lies on disk, with the shape it has once unpacked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UsageError, WeightError
from zoo.formats.ggml import GGML_BY_NAME
from zoo.formats.tensor import TensorInfo
from zoo.quant import tiles
from zoo.quant.dequant import DEQUANT, dequantize, dequantize_fp8

DENSE: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E8M0": torch.float8_e8m0fnu,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""Types of a file that are a dtype of torch."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class QuantTensor:
    """A block-quantised weight. Nothing writes to it, and only `dequantize` unpacks it as a whole.

    `type` names the block type ("Q4_K", "F8_E4M3"); `shape` is the logical shape in torch's order. A GGML type has one
    part, `data` uint8 [*shape[:-1], row_bytes]. FP8 has `data` uint8 [*shape], `scale` float32
    [*shape[:-2], ceil(rows / block[0]), ceil(columns / block[1])], and the `block` that shares a scale.
    `layout` is "ggml" for parts as they lie on disk, "tiles" for a matrix packed for the CPU (see zoo.quant.tiles). A
    kernel may pack parts in a layout of its own: then they mean what that kernel says, and this class neither checks
    nor slices nor unpacks them.

    Raises WeightError for an unknown type, and where type, shape, block and parts contradict each other.
    """

    type: str
    shape: tuple[int, ...]
    parts: Mapping[str, Tensor]
    layout: str = "ggml"
    block: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "parts", MappingProxyType(dict(self.parts)))
        if self.layout == "ggml":
            expected = _fp8_parts(self) if self.type == "F8_E4M3" else _ggml_parts(self)
            found = {name: (part.dtype, tuple(part.shape)) for name, part in self.parts.items()}
            if found != expected:
                raise WeightError(f"{self.type} {list(self.shape)} needs parts {expected}, found {found}")

    @property
    def ndim(self) -> int:
        """Number of logical dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts together."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def device(self) -> torch.device:
        """Where the parts lie."""
        return next(iter(self.parts.values())).device

    def to(self, device: torch.device | str) -> QuantTensor:
        """The same weight with its parts on `device`."""
        return self._with(self.shape, {name: part.to(device) for name, part in self.parts.items()})

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[QuantTensor]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: int | slice) -> QuantTensor:
        """`q[a:b]`: rows of dim 0, cut at the ends as a list is. `q[i]`: one matrix of a stack. Both are views.

        Raises UsageError for a step, for `q[i]` of a matrix or outside the stack, and what `narrow` raises.
        """
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise UsageError(f"a slice of {self!r} has step {step}", remedy="slice contiguous rows")
            return self.narrow(0, start, max(0, stop - start))
        if self.ndim < 3:
            raise UsageError(f"{self!r} is no stack of matrices", remedy="rows() unpacks single rows")
        if not -len(self) <= key < len(self):
            raise UsageError(f"index {key} is outside {self!r}", remedy=f"it has {len(self)} matrices")
        return self._with(self.shape[1:], {name: part[key] for name, part in self._disk_parts().items()})

    def narrow(self, dim: int, start: int, length: int) -> QuantTensor:
        """View of `length` entries from `start` on in a leading dimension; `dim` counts from 0, the last is packed.

        Raises UsageError outside the tensor, WeightError where FP8 rows would start inside a block of scales.
        """
        if not (0 <= dim < self.ndim - 1 and 0 <= start <= start + length <= self.shape[dim]):
            raise UsageError(f"no entries {start}:{start + length} in dim {dim} of {self!r}", remedy="see its shape")
        if self.layout == tiles.LAYOUT:
            return self._narrow_tiles(start, length)
        parts = {"data": self._disk_parts()["data"].narrow(dim, start, length)}
        if self.block:
            high = self.block[0] if dim == self.ndim - 2 else 1
            if start % high and length:
                remedy = f"start at a multiple of {high}, or dequantize first"
                raise WeightError(f"row {start} of {self!r} lies inside a scale block of {high} rows", remedy=remedy)
            parts["scale"] = self.parts["scale"].narrow(dim, start // high, -(-length // high))
        return self._with((*self.shape[:dim], length, *self.shape[dim + 1 :]), parts)

    def view(self, shape: tuple[int, ...]) -> QuantTensor:
        """View with other leading dimensions; the last one (columns) stays.

        Raises UsageError for other columns, another number of elements, or parts that are not one run of memory;
        WeightError where matrices of FP8 would not begin and end with a block of scales.
        """
        if not shape or shape[-1] != self.shape[-1] or math.prod(shape) != math.prod(self.shape):
            raise UsageError(f"{self!r} has no view {list(shape)}", remedy="keep columns and number of elements")
        data = self._disk_parts()["data"]
        if not data.is_contiguous():
            raise UsageError(f"{self!r} is a view with gaps", remedy="change the shape first, narrow it afterwards")
        parts = {"data": data.view(*shape[:-1], data.shape[-1])}
        if self.block:
            high, scale = self.block[0], self.parts["scale"]
            if len(shape) < 2 or (shape[-2] != self.shape[-2] and (shape[-2] % high or self.shape[-2] % high)):
                remedy = f"each matrix needs a multiple of {high} rows"
                raise WeightError(f"view {list(shape)} of {self!r} would cut blocks of scales", remedy=remedy)
            parts["scale"] = scale.reshape(*shape[:-2], -(-shape[-2] // high), scale.shape[-1])
        return self._with(shape, parts)

    def rows(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Unpack only the rows of a matrix that `index` names (int32 or int64, any shape): [*index.shape, columns].

        Raises UsageError for a tensor that is no matrix, an index that is not of integers, and an index outside
        0..rows-1 (on a GPU that one is a device-side assertion: looking would cost a synchronisation).
        """
        if self.ndim != 2 or index.dtype not in (torch.int32, torch.int64):
            raise UsageError(f"rows of {self!r} by {index.dtype}", remedy="take a matrix, and int32 or int64")
        flat = index.flatten()
        if self.layout == tiles.LAYOUT:
            return self._tile_rows(flat, dtype).view(*index.shape, self.shape[1])
        parts = self._disk_parts()
        try:
            data = parts["data"].index_select(0, flat)
        except IndexError as error:
            raise self._outside() from error
        if self.block:
            scale = parts["scale"].index_select(0, flat // self.block[0])
            out = dequantize_fp8(data, scale, (1, self.block[1]), dtype)
        else:
            out = dequantize(self.type, data, self.shape[1], dtype)
        return out.view(*index.shape, self.shape[1])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All elements, computed in float32 and rounded once to `dtype`: [*shape]."""
        if self.layout == tiles.LAYOUT:
            data = tiles.unpack(self.type, self.shape[1], self.parts["data"])[: len(self)]
            return dequantize(self.type, data, self.shape[1], dtype)
        parts = self._disk_parts()
        if self.block:
            return dequantize_fp8(parts["data"], parts["scale"], self.block, dtype)
        return dequantize(self.type, parts["data"], self.shape[-1], dtype)

    def __repr__(self) -> str:
        return f"QuantTensor({self.type}, {list(self.shape)}, {self.nbytes} bytes, {self.layout}, {self.device})"

    def _with(self, shape: tuple[int, ...], parts: Mapping[str, Tensor]) -> QuantTensor:
        return QuantTensor(self.type, shape, parts, self.layout, self.block)

    def _narrow_tiles(self, start: int, length: int) -> QuantTensor:
        rows = tiles.tile_rows(self.type, self.shape[1], self.parts["data"])
        if start % rows and length:
            remedy = f"start at a multiple of {rows}, or slice before the weight is packed"
            raise UsageError(f"row {start} of {self!r} lies inside a tile of {rows} rows", remedy=remedy)
        data = self.parts["data"].narrow(0, start // rows, -(-length // rows))
        return self._with((length, self.shape[1]), {"data": data})

    def _tile_rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows [n, columns] of a matrix in tiles."""
        if len(index) and not (int(index.min()) >= 0 and int(index.max()) < len(self)):
            raise self._outside()
        rows = tiles.tile_rows(self.type, self.shape[1], self.parts["data"])
        around = tiles.unpack(self.type, self.shape[1], self.parts["data"].index_select(0, index // rows))
        picked = torch.arange(len(index), device=index.device) * rows + index % rows
        return dequantize(self.type, around.index_select(0, picked), self.shape[1], dtype)

    def _outside(self) -> UsageError:
        return UsageError(f"a row index is outside 0..{len(self) - 1} of {self!r}")

    def _disk_parts(self) -> Mapping[str, Tensor]:
        """The parts, provided that they are packed as on disk."""
        if self.layout != "ggml":
            remedy = "slice, view and unpack before a kernel packs it"
            raise UsageError(f"{self!r} is in the layout of a kernel", remedy=remedy)
        return self.parts


def _ggml_parts(tensor: QuantTensor) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Expected dtype and shape of each part of a GGML type."""
    if tensor.type not in DEQUANT:
        known = ", ".join([*DEQUANT, "F8_E4M3"])
        raise WeightError(f"no way to unpack block type {tensor.type}", remedy=f"known types: {known}")
    block = GGML_BY_NAME[tensor.type]
    if tensor.block is not None or not tensor.shape or tensor.shape[-1] % block.block_elements:
        raise WeightError(
            f"{tensor.type} {list(tensor.shape)} with scale block {tensor.block}",
            remedy=f"rows must be whole blocks of {block.block_elements} elements, and only FP8 has a scale block",
        )
    return {"data": (torch.uint8, (*tensor.shape[:-1], block.row_bytes(tensor.shape[-1])))}


def _fp8_parts(tensor: QuantTensor) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Expected dtype and shape of each part of block-scaled FP8."""
    if tensor.block is None or min(tensor.block) < 1 or tensor.ndim < 2:
        raise WeightError(
            f"{tensor.type} {list(tensor.shape)} with scale block {tensor.block}",
            remedy="block-scaled FP8 is a matrix or a stack of them, with block=(rows, columns)",
        )
    (rows, columns), (high, wide) = tensor.shape[-2:], tensor.block
    scales = (*tensor.shape[:-2], -(-rows // high), -(-columns // wide))
    return {"data": (torch.uint8, tensor.shape), "scale": (torch.float32, scales)}


class _Writable:
    """Read-only bytes that numpy takes for writable.

    torch warns of a read-only array, and only the filters of the whole process could silence it. Weights are never
    written to, so the flag is dropped here; writing into a mapped file would end the process.
    """

    def __init__(self, data: memoryview) -> None:
        self._array = np.frombuffer(data, np.uint8)  # keeps the buffer alive
        interface = self._array.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def wrap(info: TensorInfo, data: memoryview) -> Tensor | QuantTensor:
    """A tensor over the bytes of a file, without copying: dense types as their torch dtype, block types as QuantTensor.

    The result must not be written to. F8_E4M3 comes as torch.float8_e4m3fn, for its scales are another tensor.
    Raises WeightError, naming tensor and file, for an unknown type, a row that is no whole number of blocks, and bytes
    that are not as many as type and shape need.
    """
    where = f"{info.path}: tensor {info.name} is {info.type} {list(info.shape)}"
    dtype = DENSE.get(info.type)
    if dtype:
        elements, size = 1, dtype.itemsize
    elif info.type in DEQUANT:
        elements, size = GGML_BY_NAME[info.type].block_elements, GGML_BY_NAME[info.type].block_bytes
    else:
        known = ", ".join(sorted({*DENSE, *DEQUANT}))
        raise WeightError(f"{where}, a type that zoo cannot read", remedy=f"known types: {known}")
    columns = info.shape[-1] if info.shape else 1
    if columns % elements:
        remedy = f"a block has {elements} elements"
        raise WeightError(f"{where}, whose rows are no whole number of blocks", remedy=remedy)
    needed = info.numel // elements * size
    if data.nbytes != needed:
        raise WeightError(f"{where} and needs {needed} bytes, found {data.nbytes}", remedy="the file is damaged")
    raw = torch.from_numpy(np.asarray(_Writable(data))) if needed else torch.empty(0, dtype=torch.uint8)
    if dtype is None:
        packed = raw.view(*info.shape[:-1], columns // elements * size)
        return QuantTensor(info.type, info.shape, {"data": packed})
    if raw.data_ptr() % dtype.itemsize:  # safetensors aligns nothing, torch computes on aligned elements only
        raw = raw.clone()
    return raw.view(dtype).view(info.shape)
