"""Random weights of a published form, made on the device: models that are on no disk can be measured."""

from __future__ import annotations

import re
import zlib
from typing import TypeVar

import torch
from torch import Tensor, nn

from zoo.errors import UsageError
from zoo.formats.ggml import GGML_BY_NAME
from zoo.quant.experts import ExpertWeights
from zoo.quant.tensor import DENSE, QuantTensor
from zoo.weights.forms import FP8_BLOCK, Form, declared, form_types
from zoo.weights.loader import Fillable, Finalizable

Model = TypeVar("Model", bound=nn.Module)

_STD = 0.02

SCALES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q4_0": ((0, 4e-3),),
    "Q5_0": ((0, 2e-3),),
    "Q5_1": ((0, 2e-3), (2, -3.1e-2)),
    "Q8_0": ((0, 3e-4),),
    "Q4_K": ((0, 1e-4), (2, 7.5e-4)),
    "Q5_K": ((0, 5e-5), (2, 7.75e-4)),
    "Q6_K": ((208, 1.5e-5),),
    "IQ1_S": ((0, 2.5e-3),),
    "IQ4_NL": ((0, 3e-4),),
    "IQ4_XS": ((0, 1.55e-5),),
}
"""Where a block keeps its half-precision scales, and values that spread its elements about as trained weights are:
random bits there could be infinite."""


def synthesize(model: Model, form: Form, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Model:
    """Fill a model whose weights are declared on the meta device with random ones in `form`, and finalize it.

    Norms are 1. Memory on the device is that of the form: nothing is made in another type first.
    Raises UsageError for a GPU without room for the weights.
    """
    shapes, types = declared(model), form_types(model, form)
    try:
        for name, shape in shapes.items():
            path, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            assert isinstance(module, Fillable), f"{path} declares weights but takes none"
            # Of its name, so that a weight does not depend on what was made before it.
            generator = torch.Generator(device).manual_seed(seed + zlib.crc32(name.encode()))
            value = _random(types[name], shape, name, generator)
            stacked = len(shape) == 3 and attribute != "weight"
            module.set_weight(attribute, ExpertWeights.from_stacked(value) if stacked else value)
    except torch.cuda.OutOfMemoryError as error:
        raise UsageError(f"{device} has no room for the weights", remedy="take a slice (--layers N)") from error
    for module in model.modules():
        if isinstance(module, Finalizable):
            module.finalize(device, dtype)
    return model.eval()


def _random(kind: str, shape: tuple[int, ...], name: str, generator: torch.Generator) -> Tensor | QuantTensor:
    device = generator.device
    if kind == "F8_E4M3":
        # Codes whose exponent is not the highest: those would be large, and one of them is no number.
        data = torch.empty(shape, dtype=torch.uint8, device=device).random_(0, 256, generator=generator)
        data &= 0b10111111
        scales = (*shape[:-2], *(-(-size // n) for size, n in zip(shape[-2:], FP8_BLOCK, strict=True)))
        scale = torch.full(scales, _STD, dtype=torch.float32, device=device)
        return QuantTensor(kind, shape, {"data": data, "scale": scale}, block=FP8_BLOCK)
    if kind in DENSE:
        value = torch.empty(shape, dtype=DENSE[kind], device=device)
        norm = re.search(r"norm[^.]*\.weight$", name) is not None
        return value.fill_(1.0) if norm else value.normal_(0.0, _STD, generator=generator)
    block = GGML_BY_NAME[kind]
    rows = torch.Size(shape[:-1]).numel()
    data = torch.empty((rows, block.row_bytes(shape[-1])), dtype=torch.uint8, device=device)
    data.random_(0, 256, generator=generator)
    blocks = data.view(-1, block.block_bytes)
    for offset, scale_value in SCALES[kind]:
        bits = torch.tensor([scale_value], dtype=torch.float16).view(torch.uint8)
        blocks[:, offset : offset + 2] = bits.to(device)
    return QuantTensor(kind, shape, {"data": data.view(*shape[:-1], data.shape[-1])})
