"""The forms in which checkpoints are published: which type each weight has, by its name and shape.

For models that are nowhere on disk: `zoo inspect` on a configuration alone, and `zoo bench --synthetic`.
The mixtures are those of llama.cpp's quantiser (llama-quant.cpp); FP8 is that of DeepSeek-V3's checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from zoo.errors import UsageError
from zoo.formats.ggml import GGML_BY_NAME

FP8_BLOCK = (128, 128)
"""Rows and columns that share a scale in an FP8 checkpoint."""

# Rows that are no whole number of blocks of 256 get another type; rows that are none of 32 stay F16.
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ1_S": "IQ4_NL", "IQ4_XS": "IQ4_NL"}
_FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
# What decides most for a model's quality gets more bits in some layers, or in all.
_VALUES = re.compile(r"\.(v_proj|kv_b_proj|k_b_proj|v_b_proj)(\.weight)?$")
_SENSITIVE = re.compile(r"\.(v_proj|kv_b_proj|k_b_proj|v_b_proj|down_proj)(\.weight)?$")


@dataclass(frozen=True, slots=True)
class Form:
    """`base`: type of most matrices; `sensitive`: of values and down-projections in some layers; `values`: of values in
    all layers; `experts`: of routed experts; `head`: of the output, or of the embedding where that is tied; `vectors`:
    of everything that is no matrix, and of routers.
    """

    base: str
    vectors: str = "F32"
    sensitive: str | None = None
    values: str | None = None
    experts: str | None = None
    embedding: str | None = None
    head: str | None = None

    def type_of(self, name: str, shape: tuple[int, ...], layers: int, *, tied: bool) -> str:
        """The type of the weight `name`, a target of a name map, with `shape`, in a model of so many layers."""
        if name.endswith("e_score_correction_bias"):
            return "F32"
        # A stack of heads or experts is no vector, whatever its name; a router is a matrix that stays as it is.
        if len(shape) < 2 or name.endswith(".gate.weight"):
            return self.vectors
        if name.endswith("lm_head.weight") or (tied and name.endswith("embed_tokens.weight")):
            kind = self.head or self.base
        elif name.endswith("embed_tokens.weight"):
            kind = self.embedding or self.base
        elif self.experts and len(shape) == 3 and not name.endswith(".weight"):
            kind = self.experts
        elif self.values and _VALUES.search(name):
            kind = self.values
        elif self.sensitive and _SENSITIVE.search(name) and _more_bits(_layer(name), layers):
            kind = self.sensitive
        else:
            kind = self.base
        return _fitting(kind, shape[-1])


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "f32": Form("F32"),
        "bf16": Form("BF16", vectors="BF16"),
        "f16": Form("F16"),
        "fp8": Form("F8_E4M3", vectors="BF16", embedding="BF16", head="BF16"),
        "q8_0": Form("Q8_0"),
        "q6_k": Form("Q6_K"),
        "q5_k_m": Form("Q5_K", sensitive="Q6_K", head="Q6_K"),
        "q4_k_m": Form("Q4_K", sensitive="Q6_K", head="Q6_K"),
        "q4_0": Form("Q4_0", head="Q6_K"),
        "iq4_xs": Form("IQ4_XS", values="Q5_K", head="Q6_K"),
        "iq1_s": Form("Q4_K", experts="IQ1_S", head="Q6_K"),
    }
)
"""By the name that people use. `iq1_s` is the mixture of R1's popular files: routed experts small, the rest not."""


def form(name: str) -> Form:
    """The form of a name. Raises UsageError for one that is not in FORMS."""
    try:
        return FORMS[name]
    except KeyError:
        raise UsageError(f"the form {name!r} is unknown", remedy=f"use {', '.join(FORMS)}") from None


def declared(model: Any) -> dict[str, tuple[int, ...]]:
    """Every weight that a model on the meta device declares, by name: its shape."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def form_types(model: Any, chosen: Form) -> dict[str, str]:
    """The type of each declared weight of a model on the meta device."""
    layers, tied = len(model.model.layers), bool(getattr(model.config, "tie_word_embeddings", False))
    return {name: chosen.type_of(name, shape, layers, tied=tied) for name, shape in declared(model).items()}


def nbytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a weight of a type and shape, FP8 with its scales."""
    rows = 1
    for size in shape[:-1]:
        rows *= size
    if kind == "F8_E4M3":
        high, wide = FP8_BLOCK
        stack = rows // shape[-2]
        return rows * shape[-1] + 4 * stack * -(-shape[-2] // high) * -(-shape[-1] // wide)
    return rows * (shape[-1] * _FLOATS[kind] if kind in _FLOATS else GGML_BY_NAME[kind].row_bytes(shape[-1]))


def form_bytes(model: Any, chosen: Form) -> int:
    """Bytes of all weights of a model on the meta device in a form."""
    shapes = declared(model)
    return sum(nbytes(kind, shapes[name]) for name, kind in form_types(model, chosen).items())


def _layer(name: str) -> int:
    found = re.search(r"\.layers\.(\d+)\.", name)
    return int(found[1]) if found else 0


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between them."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _fitting(kind: str, columns: int) -> str:
    if kind in _FLOATS or kind == "F8_E4M3":
        return kind
    if columns % GGML_BY_NAME[kind].block_elements:
        kind = _FALLBACK.get(kind, kind)
    return "F16" if columns % GGML_BY_NAME[kind].block_elements else kind
