"""Small pieces that several block types are made of. `data` and `blocks` are packed bytes: uint8, blocks [n, size]."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.quant import tables


def half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of each block, as float32 [n, 1]."""
    return blocks[:, start : start + 2].view(torch.float16).float()


def words(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes [n, k] read as little-endian integers: [n, k / size]. Copies, for few blocks are a multiple of a word."""
    return data.clone(memory_format=torch.contiguous_format).view(dtype)  # contiguous() keeps the stride of one row


def planes(data: Tensor, width: int) -> Tensor:
    """Bytes [..., k] -> uint8 [..., 8 / width, k]: the lowest `width` bits of all bytes, then the next, and so on."""
    data = data.contiguous()  # the operations on bytes are several times faster on one run of memory
    return torch.stack([(data >> shift).bitwise_and_((1 << width) - 1) for shift in range(0, 8, width)], -2)


def nibbles(data: Tensor) -> Tensor:
    """Bytes [..., k] -> uint8 [..., 2, k]: all low nibbles, then all high ones."""
    return planes(data, 4)


def fields(data: Tensor, width: int) -> Tensor:
    """Bytes [n, k] -> uint8 [n, k * (8 / width)]: the `width`-bit fields of each byte side by side, lowest first."""
    return lookup(tables.fields(width, data.device), data).view(torch.uint8)


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """Entries of `table` [m, ...] by integers of any shape: [*index.shape, ...]."""
    flat = index.flatten()
    picked = table.index_select(0, flat if flat.dtype in (torch.int32, torch.int64) else flat.int())
    return picked.view(*index.shape, *table.shape[1:])
