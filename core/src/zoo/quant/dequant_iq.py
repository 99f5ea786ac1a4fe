"""Definitions of the block types with a codebook (IQ, FP4) and of those with two to four values (TQ, Q1_0, Q2_0).

Same contract as the functions of `zoo.quant.dequant`: uint8 [n, block_bytes] -> float32 [n, block_elements].
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.quant import tables
from zoo.quant.bits import fields, half, lookup, nibbles, planes, words

IQ1_SHIFT = 0.125
"""What IQ1 types add to each level of a vector, or take from it."""


def iq4_nl(blocks: Tensor) -> Tensor:
    """d f16, q 16 bytes of nibble planes. d * level[q]."""
    levels = tables.levels(tables.IQ4_LEVELS, blocks.device)
    return lookup(levels, nibbles(blocks[:, 2:]).flatten(1)).mul_(half(blocks, 0))


def iq4_xs(blocks: Tensor) -> Tensor:
    """d f16, scales (8 x upper 2 bits, 8 x lower 4), q 8 x 16 bytes of nibble planes. d * (scale - 32) * level[q]."""
    scale = (fields(blocks[:, 4:8], 4) | fields(blocks[:, 2:4], 2) << 4).float() - 32
    levels = tables.levels(tables.IQ4_LEVELS, blocks.device)
    values = lookup(levels, nibbles(blocks[:, 8:].view(-1, 8, 16)).flatten(2))
    return values.mul_((half(blocks, 0) * scale).unsqueeze(2)).flatten(1)


def iq3_xxs(blocks: Tensor) -> Tensor:
    """d f16, 64 indexes of 4 elements, 8 words of signs and scale. d * (scale + 1/2) / 2 * vector."""
    signs, scale = _signs_and_scale(blocks[:, 66:])
    return _vectors("IQ3_XXS", blocks[:, 2:66], signs, half(blocks, 0) * scale / 4)


def iq3_s(blocks: Tensor) -> Tensor:
    """d f16, 64 indexes, their ninth bits, 32 bytes of signs, 8 scale nibbles. d * (2 scale + 1) * vector."""
    index = blocks[:, 2:66].int() | fields(blocks[:, 66:74], 1).int() << 8
    return _vectors("IQ3_S", index, _signs(blocks[:, 74:106]), half(blocks, 0) * _odd(fields(blocks[:, 106:], 4)))


def iq2_xxs(blocks: Tensor) -> Tensor:
    """d f16, 8 x (4 indexes of 8 elements, a word of signs and scale). d * (scale + 1/2) / 4 * vector."""
    index, word = blocks[:, 2:].view(-1, 8, 2, 4).unbind(2)
    signs, scale = _signs_and_scale(word.flatten(1))
    return _vectors("IQ2_XXS", index.flatten(1), signs, half(blocks, 0) * scale / 8)


def iq2_xs(blocks: Tensor) -> Tensor:
    """d f16, 32 words (9 bits index, 7 bits signs), 16 scale nibbles. d * (scale + 1/2) / 4 * vector."""
    word = words(blocks[:, 2:66], torch.int16).int()
    signs = lookup(tables.even_signs(blocks.device), word >> 9 & 127)
    return _vectors("IQ2_XS", word & 511, signs, half(blocks, 0) * _odd(fields(blocks[:, 66:], 4)) / 8)


def iq2_s(blocks: Tensor) -> Tensor:
    """d f16, 32 indexes, 32 bytes of signs, 32 x upper 2 bits, 16 scale nibbles. d * (scale + 1/2) / 4 * vector."""
    index = blocks[:, 2:34].int() | fields(blocks[:, 66:74], 2).int() << 8
    return _vectors("IQ2_S", index, _signs(blocks[:, 34:66]), half(blocks, 0) * _odd(fields(blocks[:, 74:], 4)) / 8)


def iq1_s(blocks: Tensor) -> Tensor:
    """d f16, 32 indexes of 8 elements, 8 words: 4 x upper 3 bits, 3 bits scale, 1 bit sign of the shift.

    d * (2 scale + 1) * (vector + shift).
    """
    word = words(blocks[:, 34:], torch.int16).int()
    upper = torch.stack([word >> bit & 7 for bit in (0, 3, 6, 9)], 2).flatten(1)
    shift = IQ1_SHIFT - 2 * IQ1_SHIFT * (word >> 15 & 1)
    return _shifted_vectors(blocks[:, 2:34], upper, shift, half(blocks, 0) * _odd(word >> 12 & 7))


def iq1_m(blocks: Tensor) -> Tensor:
    """32 indexes, 32 nibbles (upper 3 bits, sign of the shift), 4 words: 4 x 3 bits scale, a fourth of d's bits.

    d * (2 scale + 1) * (vector + shift).
    """
    word = words(blocks[:, 48:], torch.int16).int()
    quarter = word >> 12 & 15
    bits = quarter[:, 0] | quarter[:, 1] << 4 | quarter[:, 2] << 8 | quarter[:, 3] << 12
    d = bits.to(torch.int16).view(torch.float16).float().unsqueeze(1)
    scale = torch.stack([word >> bit & 7 for bit in (0, 3, 6, 9)], 2).flatten(1)
    high = fields(blocks[:, 32:48], 4).int()
    return _shifted_vectors(blocks[:, :32], high & 7, IQ1_SHIFT - 2 * IQ1_SHIFT * (high >> 3), d * _odd(scale))


def mxfp4(blocks: Tensor) -> Tensor:
    """Scale E8M0, q 16 bytes of nibble planes in E2M1. scale * value[q]."""
    levels = tables.levels(tables.FP4_LEVELS, blocks.device)
    return lookup(levels, nibbles(blocks[:, 1:]).flatten(1)).mul_(lookup(tables.e8m0(blocks.device), blocks[:, :1]))


def nvfp4(blocks: Tensor) -> Tensor:
    """4 scales E4M3 without sign, q 4 x 8 bytes of nibble planes in E2M1. scale * value[q]."""
    levels = tables.levels(tables.FP4_LEVELS, blocks.device)
    values = lookup(levels, nibbles(blocks[:, 4:].view(-1, 4, 8)).flatten(2))
    return values.mul_(lookup(tables.ue4m3(blocks.device), blocks[:, :4]).unsqueeze(2)).flatten(1)


def tq1_0(blocks: Tensor) -> Tensor:
    """32 bytes and 16 bytes of 5 ternary digits, 4 bytes of 4 digits, d f16. d * (digit - 1)."""
    digits = [_digits(blocks[:, :32], 5), _digits(blocks[:, 32:48], 5), _digits(blocks[:, 48:52], 4)]
    return torch.cat(digits, 1).float().sub_(1).mul_(half(blocks, 52))


def tq2_0(blocks: Tensor) -> Tensor:
    """2 x 32 bytes of 2-bit planes, d f16. d * (q - 1)."""
    q = planes(blocks[:, :64].view(-1, 2, 32), 2).flatten(1)
    return q.view(torch.int8).sub_(1).float().mul_(half(blocks, 64))


def q1_0(blocks: Tensor) -> Tensor:
    """d f16, 128 bits in order. d where the bit is set, else -d."""
    return fields(blocks[:, 2:], 1).view(torch.int8).mul_(2).sub_(1).float().mul_(half(blocks, 0))


def q2_0(blocks: Tensor) -> Tensor:
    """d f16, 64 x 2 bits in order. d * (q - 1)."""
    return fields(blocks[:, 2:], 2).view(torch.int8).sub_(1).float().mul_(half(blocks, 0))


def _odd(scale: Tensor) -> Tensor:
    """2 * scale + 1, float32: (scale + 1/2) without the half, so that all products stay exact."""
    return scale.float().mul_(2).add_(1)


def _signs(bits: Tensor) -> Tensor:
    """Bytes [n, k] of sign bits -> factors [n, k, 8]."""
    return lookup(tables.signs(bits.device), bits)


def _signs_and_scale(data: Tensor) -> tuple[Tensor, Tensor]:
    """Words of 4 x 7 sign bits and a 4-bit scale, as bytes [n, 4 k] -> factors [n, 4 k, 8] and 2 * scale + 1 [n, k].

    The eighth sign of each seven makes the number of minuses even.
    """
    word = words(data, torch.int32)
    seven = torch.stack([word >> bit & 127 for bit in (0, 7, 14, 21)], 2).flatten(1)
    return lookup(tables.even_signs(data.device), seven), _odd(word >> 28 & 15)


def _vectors(name: str, index: Tensor, signs: Tensor, scale: Tensor) -> Tensor:
    """Vectors of codebook `name` by index [n, k], times signs (as many elements), times scale [n, groups]."""
    values = lookup(tables.grid(name, index.device), index).flatten(1).mul_(signs.flatten(1))
    return values.view(*scale.shape, -1).mul_(scale.unsqueeze(2)).flatten(1)


def _shifted_vectors(low: Tensor, high: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Vectors of codebook IQ1 by low byte and 3 upper bits [n, 32], plus shift, times scale (both [n, groups])."""
    values = lookup(tables.grid("IQ1", low.device), low.int() | high << 8)
    values = values.view(*shift.shape, -1).add_(shift.unsqueeze(2))
    return values.view(*scale.shape, -1).mul_(scale.unsqueeze(2)).flatten(1)


def _digits(data: Tensor, count: int) -> Tensor:
    """The `count` leading ternary digits of bytes [n, k]: int16 [n, count * k], digit by digit.

    A byte is a fraction of 256; times 3^k modulo 256 brings digit k to the front.
    """
    fraction = torch.stack([data * 3**digit for digit in range(count)], 1)
    return (fraction.to(torch.int16) * 3 >> 8).flatten(1)
