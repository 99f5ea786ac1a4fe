"""The plain torch definition of every block type: packed bytes in, float32 out.

One function per type, `uint8 [n, block_bytes] -> float32 [n, block_elements]`, bit-equal to gguf-py; they define what
faster kernels must compute. Packing as in ggml-common.h of llama.cpp; each docstring lists the fields of a block in
order, then the value of an element. Products and sums are rounded one by one: a fused multiply-add would differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from zoo.errors import WeightError
from zoo.formats.ggml import GGML_BY_NAME
from zoo.quant import dequant_iq as iq
from zoo.quant import tables
from zoo.quant.bits import fields, half, lookup, nibbles, planes

CHUNK = 1 << 18
"""Elements unpacked at a time on a CPU: the temporaries of one chunk stay in the cache of a core."""


def dequantize(type: str, data: Tensor, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack rows of blocks: uint8 [..., row_bytes] -> `dtype` [..., columns], computed in float32 and rounded once.

    Raises WeightError for a type without a definition here, and for rows that do not hold `columns` elements.
    """
    unpack = DEQUANT.get(type)
    if unpack is None:
        raise WeightError(f"no way to unpack block type {type}", remedy=f"known types: {', '.join(DEQUANT)}")
    elements, size = GGML_BY_NAME[type].block_elements, GGML_BY_NAME[type].block_bytes
    if data.dtype != torch.uint8 or columns % elements or data.shape[-1] * elements != columns * size:
        raise WeightError(f"{type} rows of {columns} columns cannot be {data.dtype} rows of {data.shape[-1]} entries")
    blocks = data.reshape(-1, size)
    out = torch.empty((blocks.shape[0], elements), dtype=dtype, device=data.device)
    step = CHUNK // elements if data.device.type == "cpu" else max(1, len(blocks))
    for start in range(0, len(blocks), step):
        out[start : start + step] = unpack(blocks[start : start + step])
    return out.view(*data.shape[:-1], columns)


def dequantize_fp8(data: Tensor, scale: Tensor, block: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack E4M3FN bytes that share one float32 scale per `block` of rows and columns: element * scale.

    data uint8 [..., rows, columns], scale float32 [..., ceil(rows / block[0]), ceil(columns / block[1])]; the last
    block of either side may be cut. DeepSeek's files call the scale `weight_scale_inv`, yet it multiplies.
    """
    (rows, columns), high = data.shape[-2:], block[0]
    out = torch.empty(data.shape, dtype=dtype, device=data.device)
    strips = max(1, CHUNK // max(1, high * columns)) if data.device.type == "cpu" else max(1, scale.shape[-2])
    wide = scale.repeat_interleave(block[1], -1)[..., :columns]
    for strip in range(0, scale.shape[-2], strips):
        part = slice(strip * high, min(rows, (strip + strips) * high))
        factor = wide[..., strip : strip + strips, :].repeat_interleave(high, -2)[..., : part.stop - part.start, :]
        out[..., part, :] = lookup(tables.e4m3(data.device), data[..., part, :]).mul_(factor)
    return out


def f32(blocks: Tensor) -> Tensor:
    """IEEE single precision."""
    return blocks.view(torch.float32)


def f16(blocks: Tensor) -> Tensor:
    """IEEE half precision."""
    return blocks.view(torch.float16).float()


def bf16(blocks: Tensor) -> Tensor:
    """The upper half of a float32."""
    return blocks.view(torch.bfloat16).float()


def q4_0(blocks: Tensor) -> Tensor:
    """d f16, q 16 bytes: element j is the low nibble of byte j, element j + 16 its high one. d * (q - 8)."""
    return nibbles(blocks[:, 2:]).flatten(1).view(torch.int8).sub_(8).float().mul_(half(blocks, 0))


def q4_1(blocks: Tensor) -> Tensor:
    """d f16, m f16, q as in Q4_0. d * q + m."""
    return nibbles(blocks[:, 4:]).flatten(1).float().mul_(half(blocks, 0)).add_(half(blocks, 2))


def q5_0(blocks: Tensor) -> Tensor:
    """d f16, 32 high bits, 16 bytes of low nibbles as in Q4_0. d * (q - 16)."""
    return _five_bits(blocks[:, 2:]).view(torch.int8).sub_(16).float().mul_(half(blocks, 0))


def q5_1(blocks: Tensor) -> Tensor:
    """d f16, m f16, q as in Q5_0. d * q + m."""
    return _five_bits(blocks[:, 4:]).float().mul_(half(blocks, 0)).add_(half(blocks, 2))


def q8_0(blocks: Tensor) -> Tensor:
    """d f16, 32 signed bytes q. d * q."""
    return blocks[:, 2:].view(torch.int8).float().mul_(half(blocks, 0))


def q2_k(blocks: Tensor) -> Tensor:
    """16 bytes of nibbles (scale, min), q 2 x 32 bytes of 2-bit planes, d f16, dmin f16. d * scale * q - dmin * min."""
    scale, low = nibbles(blocks[:, :16]).float().unbind(1)
    q = planes(blocks[:, 16:80].view(-1, 2, 32), 2).float().view(-1, 16, 16)
    return _scaled(q, half(blocks, 80) * scale, half(blocks, 82) * low)


def q3_k(blocks: Tensor) -> Tensor:
    """32 bytes of high bits, 2 x 32 bytes of 2-bit planes, 12 bytes of 6-bit scales, d f16. d * (scale - 32) * (q - 4).

    Scale j has its low nibble in nibble plane j / 8 of the first 8 bytes, its upper bits in 2-bit plane j / 4 of the
    last 4 bytes.
    """
    q = planes(blocks[:, 32:96].view(-1, 2, 32), 2).view(-1, 8, 32)
    q |= planes(blocks[:, :32], 1) << 2
    scale = nibbles(blocks[:, 96:104]).flatten(1) | planes(blocks[:, 104:108], 2).flatten(1) << 4
    return _scaled(q.view(torch.int8).sub_(4).view(-1, 16, 16).float(), half(blocks, 108) * (scale.float() - 32))


def q4_k(blocks: Tensor) -> Tensor:
    """d f16, dmin f16, 12 bytes of scales and mins, q 4 x 32 bytes of nibble planes. d * scale * q - dmin * min."""
    scale, low = _scales_and_mins(blocks)
    return _scaled(nibbles(blocks[:, 16:].view(-1, 4, 32)).float().view(-1, 8, 32), scale, low)


def q5_k(blocks: Tensor) -> Tensor:
    """As Q4_K, with 32 bytes before q whose 8 bit planes are the fifth bits."""
    scale, low = _scales_and_mins(blocks)
    q = nibbles(blocks[:, 48:].view(-1, 4, 32)).view(-1, 8, 32)
    q |= planes(blocks[:, 16:48], 1) << 4
    return _scaled(q.float(), scale, low)


def q6_k(blocks: Tensor) -> Tensor:
    """2 x 64 bytes of nibble planes, 2 x 32 bytes of 2-bit planes (upper bits), 16 signed scales, d f16.

    d * scale * (q - 32).
    """
    q = nibbles(blocks[:, :128].view(-1, 2, 64)).view(-1, 8, 32)
    q |= planes(blocks[:, 128:192].view(-1, 2, 32), 2).view(-1, 8, 32) << 4
    scale = blocks[:, 192:208].view(torch.int8).float()
    return _scaled(q.view(torch.int8).sub_(32).view(-1, 16, 16).float(), half(blocks, 208) * scale)


def q8_k(blocks: Tensor) -> Tensor:
    """d f32, 256 signed bytes q, 16 sums (redundant). d * q."""
    return blocks[:, 4:260].view(torch.int8).float().mul_(blocks[:, :4].view(torch.float32))


def _five_bits(packed: Tensor) -> Tensor:
    """4 bytes of fifth bits in order, 16 bytes of nibbles as in Q4_0 -> uint8 [n, 32]."""
    return nibbles(packed[:, 4:]).flatten(1) | fields(packed[:, :4], 1) << 4


def _scales_and_mins(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """d * scale and dmin * min of the 8 sub-blocks of Q4_K and Q5_K, float32 [n, 8] each.

    Bytes 0-3 and 4-7 hold scales and mins 0-3 in 6 bits, and in their top 2 bits those of number 4-7, whose low nibbles
    are bytes 8-11: scales low, mins high.
    """
    packed = blocks[:, 4:16].view(-1, 3, 4)
    first = packed[:, :2]
    second = nibbles(packed[:, 2]) | (first >> 6) << 4
    scale, low = torch.cat((first & 63, second), 2).float().unbind(1)
    return half(blocks, 0) * scale, half(blocks, 2) * low


def _scaled(q: Tensor, scale: Tensor, low: Tensor | None = None) -> Tensor:
    """q [n, groups, size] times scale [n, groups], minus low [n, groups], in place: float32 [n, groups * size]."""
    q.mul_(scale.unsqueeze(2))
    if low is not None:
        q.sub_(low.unsqueeze(2))
    return q.flatten(1)


DEQUANT: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "F32": f32,
        "F16": f16,
        "BF16": bf16,
        "Q4_0": q4_0,
        "Q4_1": q4_1,
        "Q5_0": q5_0,
        "Q5_1": q5_1,
        "Q8_0": q8_0,
        "Q2_K": q2_k,
        "Q3_K": q3_k,
        "Q4_K": q4_k,
        "Q5_K": q5_k,
        "Q6_K": q6_k,
        "Q8_K": q8_k,
        "IQ4_NL": iq.iq4_nl,
        "IQ4_XS": iq.iq4_xs,
        "IQ3_XXS": iq.iq3_xxs,
        "IQ3_S": iq.iq3_s,
        "IQ2_XXS": iq.iq2_xxs,
        "IQ2_XS": iq.iq2_xs,
        "IQ2_S": iq.iq2_s,
        "IQ1_S": iq.iq1_s,
        "IQ1_M": iq.iq1_m,
        "MXFP4": iq.mxfp4,
        "NVFP4": iq.nvfp4,
        "TQ1_0": iq.tq1_0,
        "TQ2_0": iq.tq2_0,
        "Q1_0": iq.q1_0,
        "Q2_0": iq.q2_0,
    }
)
"""Definition of each block type: uint8 [n, block_bytes] -> float32 [n, block_elements]; rows of n are independent."""
