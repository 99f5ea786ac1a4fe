"""The structs of core/native/zoo.h, field by field. Pointers are addresses, strides count elements."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

ABI = 4
"""ZOO_ABI of zoo.h."""

F32, F16, BF16, FP8_E4M3 = 0, 1, 30, 1000

_KINDS: Mapping[str, Any] = MappingProxyType(
    {"p": ctypes.c_void_p, "q": ctypes.c_int64, "i": ctypes.c_int32, "f": ctypes.c_float}
)


def _fields(text: str) -> list[tuple[str, Any]]:
    """Fields from "kind: names" groups, kinds as in _KINDS."""
    out: list[tuple[str, Any]] = []
    for group in text.split(";"):
        kind, names = group.split(":")
        out += [(name, _KINDS[kind.strip()]) for name in names.split()]
    return out


class Weight(ctypes.Structure):
    """A matrix as it lies in memory; `packed`: in tiles of rows, see zoo.quant.tiles."""

    _fields_ = _fields(
        "i: type packed; q: rows cols; p: data; q: row_bytes; p: scale; q: scale_stride; i: block_rows block_cols"
    )


class Part(ctypes.Structure):
    """One weight on a shared input."""

    _fields_ = [("weight", Weight), *_fields("p: y; q: ldy; p: bias")]


class Stack(ctypes.Structure):
    """Equal matrices, one per head."""

    _fields_ = [("first", Weight), *_fields("q: next next_scale")]


class Linear(ctypes.Structure):
    """Several weights on one input."""

    _fields_ = _fields("i: code count; p: x; q: m ldx prompt; p: parts")


class Glu(ctypes.Structure):
    """Gate and up with the activation between them."""

    _fields_ = _fields("i: code act; p: x; q: m ldx prompt; p: parts y; q: ldy")


class Embedding(ctypes.Structure):
    """Rows of a table."""

    _fields_ = [*_fields("i: code; f: scale; p: ids; q: count"), ("table", Weight), ("y", ctypes.c_void_p)]


class Norm(ctypes.Structure):
    """RMS norm and layer norm."""

    _fields_ = _fields("i: code type; p: x add weight bias y sum; q: rows cols ldx ld_add; f: eps offset")


class Rotary(ctypes.Structure):
    """Angles of positions."""

    _fields_ = _fields("i: code; f: scaling; p: positions inv_freq cos sin; q: count half")


class Attend(ctypes.Structure):
    """Rotation, cache write and attention."""

    _fields_ = _fields(
        "i: code cache_type; p: q k v; q: q_token q_head k_token k_head v_token v_head; p: cos sin; q: half;"
        "i: interleaved block_size; p: k_cache v_cache block_table slots cu_seqlens seq_lens positions;"
        "q: table_stride; p: sinks y; q: tokens sequences heads kv_heads head_dim v_dim window; f: scale softcap"
    )


class HeadLinear(ctypes.Structure):
    """A matrix per head."""

    _fields_ = [
        *_fields("i: code transposed; p: x; q: tokens heads x_token x_head"),
        ("stack", Stack),
        ("y", ctypes.c_void_p),
    ]


class AttendLatent(ctypes.Structure):
    """Latent attention, in one of its two orders of multiplication."""

    _fields_ = [
        *_fields(
            "i: code cache_type; p: q q_rope; q: q_token q_head r_token r_head; p: latent k_rope; q: l_token k_token;"
            "p: cos sin; q: half; i: interleaved block_size; p: cache block_table slots cu_seqlens seq_lens positions;"
            "q: table_stride; p: y; q: tokens sequences heads rank rope nope v_dim most"
        ),
        ("k_up", Stack),
        ("v_up", Stack),
        *_fields("i: absorbed k_up_transposed; f: scale; i: unused"),
    ]


class Route(ctypes.Structure):
    """The choice of experts."""

    _fields_ = _fields(
        "i: code scoring; p: logits bias indices weights; q: tokens experts ld top_k groups top_groups;"
        "i: best_two normalize; f: scale jitter"
    )


class Moe(ctypes.Structure):
    """The chosen experts."""

    _fields_ = _fields(
        "i: code act; p: x; q: tokens ldx; p: indices weights; q: top_k experts; p: gate up down add; q: ld_add; p: y"
    )


class Elementwise(ctypes.Structure):
    """Sums, gates, activations."""

    _fields_ = _fields("i: code what; p: a b y; q: rows cols lda ldb b_cols length; i: act; f: value")


class Sample(ctypes.Structure):
    """A token per row."""

    _fields_ = _fields(
        "i: code unused; p: logits; q: rows cols ld; p: banned temperature top_p min_p uniform top_k out"
    )


(LINEAR, HEAD_LINEAR, GLU, EMBEDDING, RMS_NORM, LAYER_NORM, ROTARY, ATTEND, ATTEND_LATENT, ROUTE, MOE, ELEMENTWISE,
 SAMPLE) = range(13)  # fmt: skip

ADD, ACTIVATE, GATE, SOFTCAP, POSITION_SCALE = range(5)

SCORINGS: Mapping[str, int] = MappingProxyType({"softmax": 0, "sigmoid": 1, "sparsemixer": 2})

ACTS: Mapping[str, int] = MappingProxyType({"silu": 0, "gelu_tanh": 1})

OPS: Mapping[int, type[ctypes.Structure]] = MappingProxyType(
    {
        LINEAR: Linear,
        HEAD_LINEAR: HeadLinear,
        GLU: Glu,
        EMBEDDING: Embedding,
        RMS_NORM: Norm,
        LAYER_NORM: Norm,
        ROTARY: Rotary,
        ATTEND: Attend,
        ATTEND_LATENT: AttendLatent,
        ROUTE: Route,
        MOE: Moe,
        ELEMENTWISE: Elementwise,
        SAMPLE: Sample,
    }
)
