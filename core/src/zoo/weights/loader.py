"""Fills a model with the weights of a source, as they lie on disk."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, DeviceError, UsageError, WeightError
from zoo.formats.tensor import TensorInfo
from zoo.hooks import LoadOptions
from zoo.kernels.native import library as native
from zoo.quant.experts import ExpertWeights
from zoo.quant.tensor import QuantTensor, wrap
from zoo.source import ModelSource
from zoo.weights.names import Apply, Expert, NameMap, Rows

Model = TypeVar("Model", bound=nn.Module)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FLOATS = ("F64", "F32", "F16", "BF16")
_FP8_SCALE = "_scale_inv"


@runtime_checkable
class Fillable(Protocol):
    """A module that declares weights and takes the loaded ones."""

    def set_weight(self, name: str, value: Any) -> None:
        """Put a loaded weight in the place of the declared one."""


@runtime_checkable
class Finalizable(Protocol):
    """A module that computes buffers, or must know the compute dtype, once the weights are there."""

    def finalize(self, device: torch.device, dtype: torch.dtype) -> None:
        """Called once, after all weights are set."""


@runtime_checkable
class Selective(Protocol):
    """A model that leaves tensors of the file aside, by what its configuration says."""

    def ignores(self, name: str) -> bool:
        """Whether the tensor of this name in the file is known and not needed."""


def load_model(source: ModelSource, options: LoadOptions, model: Model, names: NameMap) -> Model:
    """Put the weights of `source` into a model whose weights are declared on the meta device.

    Dense tensors stay the dtype and block-quantised ones the packed bytes they are on disk, memory-mapped on a CPU.
    Raises WeightError for a tensor that is unmapped, missing, misshapen or of a type that cannot be computed with.
    """
    if options.placement:
        raise UsageError(
            "placement by layer is not available", remedy="leave placement out; the model goes to one device"
        )
    device, dtype = resolve_device(options.device), resolve_dtype(options, source)
    tied = bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))
    filler = _Filler(source, model, names, device, tied)
    total, done = sum(info.nbytes for info in source.tensors.values()), 0
    with _garbage_uncollected():
        for info in source.tensors.values():
            filler.take(info)
            done += info.nbytes
            if options.progress is not None:
                options.progress("load", done, total)
        filler.finish()
    for module in model.modules():
        if isinstance(module, Finalizable):
            module.finalize(device, dtype)
    return model.eval()


@contextmanager
def _garbage_uncollected() -> Iterator[None]:
    """The 92,000 tensors of DeepSeek-R1 become a million objects, all to stay: Python's collector would look through
    them again and again, a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def resolve_device(name: str) -> torch.device:
    """The device for "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N"; DeviceError if it is not here."""
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r} is unknown", remedy="use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") or str(device) != name:  # torch takes cuda:256 for cuda:0
        raise UsageError(f"device {name!r} is unknown", remedy="use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                "no CUDA device is visible to torch", remedy="use --device cpu, or install a CUDA build of torch"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceError(f"{name} does not exist", remedy=f"there are {torch.cuda.device_count()} CUDA devices")
        return torch.device("cuda", device.index or 0)
    return torch.device("cpu")


def resolve_dtype(options: LoadOptions, source: ModelSource) -> torch.dtype:
    """The compute dtype. "auto": float32 on a CPU with native kernels; else what most weight bytes are if that is BF16,
    or F16 on a GPU; float32 on a CPU otherwise, bfloat16 on a GPU otherwise unless the weights are float32.
    """
    if options.dtype != "auto":
        if options.dtype not in _DTYPES:
            raise UsageError(f"dtype {options.dtype!r} is unknown", remedy=f"use auto, {', '.join(_DTYPES)}")
        return _DTYPES[options.dtype]
    on_cpu = resolve_device(options.device).type == "cpu"
    if on_cpu and native.usable()[0]:
        return torch.float32
    common = _common_type(source)
    if common == "BF16":
        return torch.bfloat16
    if on_cpu or common == "F32":
        return torch.float32
    return torch.float16 if common == "F16" else torch.bfloat16


def within_dtypes(options: LoadOptions, source: ModelSource, bearable: Collection[str] | None) -> LoadOptions:
    """The options, with bfloat16 where "auto" would pick a dtype that a model does not bear. None: it bears all.

    Raises UsageError where such a dtype is asked for by name.
    """
    dtype = str(resolve_dtype(options, source)).removeprefix("torch.")
    if bearable is None or dtype in bearable:
        return options
    if options.dtype != "auto":
        raise UsageError(
            f"{source.path}: the numbers of this model exceed what {dtype} holds",
            remedy=f"use --dtype {' or '.join(bearable)}",
        )
    return dataclasses.replace(options, dtype="bfloat16")


def resolve_cache_dtype(options: LoadOptions, source: ModelSource) -> torch.dtype:
    """The element type of the cache. "auto": the compute type, but half precision on a CPU that computes in float32 on
    weights that are not: bfloat16 where most are that, float16 where any is packed. Their own rounding is far larger.
    """
    if options.cache_dtype != "auto":
        return resolve_dtype(LoadOptions(dtype=options.cache_dtype), source)
    dtype = resolve_dtype(options, source)
    if resolve_device(options.device).type != "cpu" or dtype != torch.float32:
        return dtype
    common = _common_type(source)
    if common == "BF16" and options.dtype == "auto":
        return torch.bfloat16
    packed = any(info.type not in _FLOATS for info in source.tensors.values())
    return torch.float16 if packed else dtype


def _common_type(source: ModelSource) -> str:
    """The type of most bytes of a source's weights."""
    sizes: dict[str, int] = {}
    for info in source.tensors.values():
        sizes[info.type] = sizes.get(info.type, 0) + info.nbytes
    return max(sizes, key=lambda kind: sizes[kind], default="F32")


class _Filler:
    """Matches tensors of a source with declared weights of a model, one at a time."""

    def __init__(self, source: ModelSource, model: nn.Module, names: NameMap, device: torch.device, tied: bool) -> None:
        self.source = source
        self.model = model
        self.names = names
        self.device = device
        self.tied = tied
        # Asked once: a protocol is slow to check, and there may be tens of thousands of tensors.
        self.ignores = model.ignores if isinstance(model, Selective) else None
        self.missing = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self.origin: dict[str, str] = {}
        self.experts: dict[str, dict[int, Tensor | QuantTensor]] = {}

    def take(self, info: TensorInfo) -> None:
        """Put one tensor of the source where it belongs."""
        if self.ignores is not None and self.ignores(info.name):
            return
        if info.name.endswith(_FP8_SCALE) and self._is_fp8(info.name.removesuffix(_FP8_SCALE)):
            return  # it is part of the weight it scales
        try:
            target, expert = self.names.resolve(info.name)
        except KeyError:
            raise self._unmapped(info) from None
        if target is None:
            return
        if isinstance(target, Apply):
            self._set(target.target, target.function(self._value(info)), info)
        elif isinstance(target, Rows):
            self._set_rows(target, self._value(info), info)
        elif isinstance(target, Expert):
            assert expert is not None
            self._set_expert(target.target, expert, info)
        elif not (self.tied and target == "lm_head.weight"):  # a tied head may lie in the file a second time
            self._set(target, self._value(info), info)

    def finish(self) -> None:
        """Put experts together and make sure that nothing is missing."""
        for target, views in self.experts.items():
            count = self.missing[target][0]
            if absent := [e for e in range(count) if e not in views]:
                raise WeightError(
                    f"{self.source.path}: {target} lacks {len(absent)} of {count} experts, the first is {absent[0]}",
                    remedy="the download may be incomplete",
                )
            self._put(target, ExpertWeights([views[e] for e in range(count)]))
        if self.missing:
            name, shape = next(iter(self.missing.items()))
            more = f" and {len(self.missing) - 1} more" if len(self.missing) > 1 else ""
            raise WeightError(
                f"{self.source.path}: no tensor for {name} {list(shape)}{more}",
                remedy="the file is incomplete, or its configuration does not belong to it",
            )

    def _value(self, info: TensorInfo) -> Tensor | QuantTensor:
        value = wrap(info, self.source.read(info.name))
        if isinstance(value, Tensor) and value.dtype == torch.float8_e4m3fn:
            value = self._with_scale(info, value)
        if isinstance(value, Tensor) and info.type not in _FLOATS:
            raise WeightError(
                f"{info.path}: {info.name} is {info.type} {list(info.shape)}, which is no weight to multiply by",
                remedy="the checkpoint is quantised in a way that zoo does not know",
            )
        if isinstance(value, QuantTensor) and len(value.shape) == 1:
            value = value.dequantize()  # vectors are small, and no kernel reads packed ones
        return value.to(self.device) if self.device.type != "cpu" else value

    def _is_fp8(self, name: str) -> bool:
        info = self.source.tensors.get(name)
        return info is not None and info.type == "F8_E4M3"

    def _with_scale(self, info: TensorInfo, data: Tensor) -> QuantTensor:
        scale_info = self.source.tensors.get(info.name + _FP8_SCALE)
        if scale_info is None:
            raise WeightError(
                f"{info.path}: {info.name} is F8_E4M3 but there is no {info.name}{_FP8_SCALE}",
                remedy="the checkpoint is incomplete: FP8 weights need their block scales",
            )
        scale = wrap(scale_info, self.source.read(scale_info.name))
        block = self._fp8_block()
        expected = (*info.shape[:-2], *(-(-size // n) for size, n in zip(info.shape[-2:], block, strict=False)))
        whole = (self.source.config.get("quantization_config") or {}).get("weight_block_size") is None
        if whole and isinstance(scale, Tensor) and scale.is_floating_point() and tuple(scale.shape) in ((), (1,)):
            scale = scale.float().expand(expected).contiguous()  # one for the whole tensor
        if isinstance(scale, Tensor) and scale.dtype == torch.bfloat16:
            scale = scale.float()  # as Qwen publishes them
        if not isinstance(scale, Tensor) or scale.dtype != torch.float32 or tuple(scale.shape) != expected:
            raise WeightError(
                f"{info.path}: {scale_info.name} is {scale_info.type} {list(scale_info.shape)}",
                remedy=f"expected F32 {list(expected)} for blocks of {list(block)}",
            )
        return QuantTensor("F8_E4M3", info.shape, {"data": data.view(torch.uint8), "scale": scale}, block=block)

    def _fp8_block(self) -> tuple[int, int]:
        """Rows and columns that share a scale: DeepSeek's 128 x 128 where config.json does not say."""
        quantization = self.source.config.get("quantization_config") or {}
        block = quantization.get("weight_block_size") or (128, 128)
        if len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
            raise ConfigError(
                f"{self.source.path}/config.json: quantization_config.weight_block_size is {block!r}",
                remedy="it must be two positive integers",
            )
        return block[0], block[1]

    def _set_rows(self, rows: Rows, value: Tensor | QuantTensor, info: TensorInfo) -> None:
        if unknown := [target for target in rows.targets if target not in self.missing]:
            raise self._twice(unknown[0], info) if unknown[0] in self.origin else self._unmapped(info)
        shapes = [self.missing[target] for target in rows.targets]
        if 0 < len(value.shape) < len(shapes[0]) and value.shape[0] % shapes[0][0] == 0:
            value = _stacked(value, shapes[0][0])
        counts = [shape[rows.dim] for shape in shapes]
        if len(value.shape) != len(shapes[0]) or value.shape[rows.dim] != sum(counts):
            raise WeightError(
                f"{info.path}: {info.name} has shape {list(info.shape)}, its parts {', '.join(rows.targets)} need "
                f"{sum(counts)} rows in {len(shapes[0])} dimensions",
                remedy="the file does not belong to its configuration",
            )
        if isinstance(value, QuantTensor) and rows.dim == len(value.shape) - 2:
            value = _cut_anywhere(value, counts)
        start = 0
        for target, count in zip(rows.targets, counts, strict=True):
            self._set(target, value.narrow(rows.dim, start, count), info)
            start += count

    def _set_expert(self, target: str, expert: int, info: TensorInfo) -> None:
        if target not in self.missing:
            raise self._twice(target, info) if target in self.origin else self._unmapped(info)
        count, *shape = self.missing[target]
        if expert >= count:
            raise WeightError(
                f"{info.path}: {info.name} is expert {expert}, the configuration has {count}",
                remedy="the file does not belong to its configuration",
            )
        place = f"{target}[{expert}]"
        if place in self.origin:
            raise self._twice(place, info)
        self._check_shape(info.name, target, info.shape, tuple(shape))
        self.origin[place] = info.name
        self.origin.setdefault(target, info.name)
        self.experts.setdefault(target, {})[expert] = self._value(info)

    def _set(self, target: str, value: Tensor | QuantTensor, info: TensorInfo) -> None:
        if target in self.origin:
            raise self._twice(target, info)
        if target not in self.missing:
            raise self._unmapped(info)
        shape = self.missing[target]
        if len(value.shape) < len(shape) and tuple(value.shape) == (math.prod(shape[:-1]), shape[-1]):
            value = value.view(shape)  # some tools write a stack as one matrix
        self._check_shape(info.name, target, tuple(value.shape), shape)
        self.origin[target] = info.name
        # Stacked experts are the constant-stride case of the table that experts lying apart make.
        stacked = len(shape) == 3 and target.rsplit(".", 1)[-1] != "weight"
        self._put(target, ExpertWeights.from_stacked(value) if stacked else value)

    def _put(self, target: str, value: Tensor | QuantTensor | ExpertWeights) -> None:
        path, _, name = target.rpartition(".")
        module = self.model.get_submodule(path)
        assert isinstance(module, Fillable), f"{path} declares weights but takes none"
        module.set_weight(name, value)
        del self.missing[target]

    def _check_shape(self, name: str, target: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if tuple(found) != wanted:
            raise WeightError(
                f"{self.source.path}: {name} has shape {list(found)}, {target} needs {list(wanted)}",
                remedy="the file does not belong to its configuration",
            )

    def _twice(self, target: str, info: TensorInfo) -> WeightError:
        return WeightError(
            f"{self.source.path}: {info.name} and {self.origin[target]} are both {target}",
            remedy="the file holds one weight twice",
        )

    def _unmapped(self, info: TensorInfo) -> WeightError:
        return WeightError(
            f"{info.path}: nobody knows the tensor {info.name} ({info.type} {list(info.shape)})",
            remedy="the file has parts that this plugin does not run; a newer plugin may",
        )


def _stacked(value: Tensor | QuantTensor, count: int) -> Tensor | QuantTensor:
    """A matrix [count * rows, columns] as a stack [count, rows, columns]."""
    shape = (count, value.shape[0] // count, *value.shape[1:])
    if isinstance(value, QuantTensor):
        value = _cut_anywhere(value, [shape[1]])
    return value.view(shape)


def _cut_anywhere(value: QuantTensor, counts: Sequence[int]) -> QuantTensor:
    """FP8 that can be cut after so many rows: where a cut is inside a scale block, one scale per row, which says the
    same. The weights themselves stay where they are.
    """
    if value.block is None or all(count % value.block[0] == 0 for count in counts):
        return value
    scale = value.parts["scale"].repeat_interleave(value.block[0], -2)[..., : value.shape[-2], :]
    parts = {"data": value.parts["data"], "scale": scale.contiguous()}
    return QuantTensor(value.type, value.shape, parts, block=(1, value.block[1]))
