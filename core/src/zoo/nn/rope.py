"""Rotary position embedding: frequencies from a Hugging Face config or from GGUF metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoo import kernels
from zoo.errors import ConfigError
from zoo.kernels import Rotary
from zoo.quant.tensor import wrap
from zoo.source import ModelSource

__all__ = ["RopeParameters", "Rotary", "RotaryEmbedding"]

_KNOWN_TYPES = ("default", "linear", "llama3", "yarn", "longrope")
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeParameters:
    """Everything that decides the angles of one rotary embedding.

    `dim`: rotated dimensions of a head; `theta`: base wavelength; `interleaved`: pairing of the weights' rows; `type`:
    "default", "linear", "llama3", "yarn" or "longrope", the other fields belonging to it under their config.json names;
    `factors`: divisors of the frequencies [dim/2] (GGUF's `rope_freqs`); `attention_factor` multiplies cos and sin (or
    by type). `short`: what holds instead where no sequence grows past `original_max_position_embeddings` (LongRoPE).
    """

    dim: int
    theta: float = 10000.0
    interleaved: bool = False
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    factors: tuple[float, ...] | None = field(default=None, repr=False)
    short: RopeParameters | None = None

    @classmethod
    def from_hf(
        cls,
        source: ModelSource,
        *,
        dim: int,
        interleaved: bool = False,
        layer_type: str | None = None,
        default_theta: float = 10000.0,
    ) -> RopeParameters:
        """From `rope_parameters` or `rope_theta` + `rope_scaling` of config.json, with `rope_type` or `type`.

        `layer_type` picks an entry where `rope_parameters` holds one dict per layer type; `default_theta` holds where
        the configuration gives no theta.
        Raises ConfigError for an unknown type and for a missing, non-positive or non-finite number.
        """
        config, where = source.config, f"{source.path}/config.json"
        raw = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{where}: rope_scaling is {raw!r}", remedy="it must be an object or null")
        if any(isinstance(value, Mapping) for value in raw.values()):
            if layer_type is None or not isinstance(raw.get(layer_type), Mapping):
                raise ConfigError(
                    f"{where}: rope_parameters has entries for {', '.join(raw)}, none for {layer_type or 'all layers'}",
                    remedy="the plugin does not run this kind of model; a newer one may",
                )
            raw = raw[layer_type]
        kind = str(raw.get("rope_type", raw.get("type", "default")))
        kind = "longrope" if kind == "su" else kind  # what the first Phi-3 called it
        _check_type(kind, where)
        theta = raw.get("rope_theta", config.get("rope_theta", default_theta))
        values: dict[str, Any] = {"theta": _positive(theta, "rope_theta", where)}
        if kind == "longrope":
            base = cls(dim=dim, interleaved=interleaved, **values)
            return _longrope_from_hf(base, raw, config, where)
        if kind != "default":
            values["factor"] = _positive(raw.get("factor"), "rope_scaling.factor", where)
        if kind in ("llama3", "yarn"):
            original = (
                raw.get("original_max_position_embeddings")
                or config.get("original_max_position_embeddings")
                or config.get("max_position_embeddings")
            )
            values["original_max_position_embeddings"] = int(
                _positive(original, "rope_scaling.original_max_position_embeddings", where)
            )
        if kind == "llama3":
            for key in ("low_freq_factor", "high_freq_factor"):
                values[key] = _positive(raw.get(key), f"rope_scaling.{key}", where)
            if values["high_freq_factor"] <= values["low_freq_factor"]:
                raise ConfigError(
                    f"{where}: rope_scaling.high_freq_factor {values['high_freq_factor']} is not above low_freq_factor "
                    f"{values['low_freq_factor']}",
                    remedy="correct config.json",
                )
        if kind == "yarn":
            for key in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"):
                if raw.get(key):
                    values[key] = _positive(raw[key], f"rope_scaling.{key}", where)
            _check_yarn_theta(values["theta"], where)
            values["truncate"] = bool(raw.get("truncate", True))
        return cls(dim=dim, interleaved=interleaved, type=kind, **values)

    @classmethod
    def from_gguf(cls, source: ModelSource, *, dim: int, interleaved: bool) -> RopeParameters:
        """From `rope.freq_base`, `rope.scaling.*` and the tensors `rope_freqs.weight`, `rope_factors_long.weight` and
        `rope_factors_short.weight`.

        Raises ConfigError for an unknown scaling type and for a non-positive or non-finite number.
        """
        where = str(source.path)
        values: dict[str, Any] = {"theta": _positive(source.key(".rope.freq_base", 10000.0), "rope.freq_base", where)}
        factor = source.key(".rope.scaling.factor", source.key(".rope.scale_linear", None))
        # A factor without a type means linear, for the files that came before the type key.
        kind = str(source.key(".rope.scaling.type", "none" if factor is None else "linear"))
        if kind == "none" or (kind == "linear" and factor is None):
            kind = "default"
        _check_type(kind, where)
        if kind == "longrope" or _LONG in source.tensors or _SHORT in source.tensors:
            if kind not in ("default", "longrope"):
                raise ConfigError(
                    f"{where}: rope.scaling.type is {kind!r}, but there are the tensors of LongRoPE",
                    remedy="the file contradicts itself: convert the model again",
                )
            return _longrope_from_gguf(cls(dim=dim, interleaved=interleaved, **values), source)
        if kind != "default":
            values["factor"] = _positive(factor, "rope.scaling.factor", where)
        if kind == "yarn":
            original = source.key(".rope.scaling.original_context_length", None) or source.key(".context_length", None)
            values["original_max_position_embeddings"] = int(
                _positive(original, "rope.scaling.original_context_length", where)
            )
            _check_yarn_theta(values["theta"], where)
            for key in ("beta_fast", "beta_slow"):
                name = f".rope.scaling.yarn_{key}"
                if (value := source.key(name, None)) is not None:
                    values[key] = _positive(value, name, where)
            if (value := source.key(".rope.scaling.attn_factor", None)) is not None:
                # It comes on top of YaRN's own temperature, unlike the key of config.json, which replaces it.
                own = _positive(value, "rope.scaling.attn_factor", where)
                values["attention_factor"] = own * yarn_mscale(values["factor"], 1.0)
            elif value := source.key(".rope.scaling.yarn_log_multiplier", None):
                # mscale_all_dim, beside an mscale of 1. DeepSeek's files mean something else, which its plugin says.
                values["mscale_all_dim"] = _positive(value, "rope.scaling.yarn_log_multiplier", where)
                values["mscale"] = 1.0
        return cls(
            dim=dim, interleaved=interleaved, type=kind, factors=_divisors(source, "rope_freqs.weight", dim), **values
        )

    def inv_freq(self) -> Tensor:
        """Radians per token of each pair, float32 [dim/2] on the CPU."""
        exponents = torch.arange(0, self.dim, 2, dtype=torch.int64, device="cpu").float() / self.dim
        freq = 1.0 / (self.theta**exponents)
        if self.factors is not None:
            freq = freq / torch.tensor(self.factors, dtype=torch.float32, device="cpu")
        if self.type == "linear":
            return freq / self.factor
        if self.type == "llama3":
            return self._llama3(freq)
        if self.type == "yarn":
            return self._yarn(freq)
        return freq

    @property
    def attention_scaling(self) -> float:
        """Multiplier of cos and sin: 1 but for YaRN (arXiv 2309.00071, section 3.4) and LongRoPE."""
        if self.type not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.type == "longrope":
            return longrope_scaling(self.factor, self.original_max_position_embeddings)
        if self.mscale and self.mscale_all_dim:
            return yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)
        return yarn_mscale(self.factor, 1.0)

    def _llama3(self, freq: Tensor) -> Tensor:
        """Llama 3.1's rule: long wavelengths are stretched, short ones kept, those between blended."""
        wavelength = 2 * math.pi / freq
        long = self.original_max_position_embeddings / self.low_freq_factor
        short = self.original_max_position_embeddings / self.high_freq_factor
        blend = (self.original_max_position_embeddings / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        between = (1 - blend) * freq / self.factor + blend * freq
        return torch.where(wavelength > long, freq / self.factor, torch.where(wavelength < short, freq, between))

    def _yarn(self, freq: Tensor) -> Tensor:
        """YaRN's blend by number of rotations over the original context (arXiv 2309.00071, section 3.2)."""

        def dimension(rotations: float) -> float:
            turns = self.original_max_position_embeddings / (rotations * 2 * math.pi)
            return self.dim * math.log(turns) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        if low == high:
            high += 0.001
        ramp = ((torch.arange(self.dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
        return freq / self.factor * ramp + freq * (1 - ramp)


class RotaryEmbedding(nn.Module):
    """Turns the positions of a batch into rotations, once per step.

    LongRoPE has two sets of frequencies, and keys turned by one of them are of no use to the other. So the choice does
    not follow the length of the moment but the longest that a sequence may reach, which does not change under way.
    """

    inv_freq: Tensor
    short_inv_freq: Tensor

    def __init__(self, parameters: RopeParameters) -> None:
        super().__init__()
        self.parameters_ = parameters

    def finalize(self, device: torch.device, dtype: torch.dtype) -> None:
        """Compute the frequencies; they stay float32 whatever the compute dtype."""
        self.register_buffer("inv_freq", self.parameters_.inv_freq().to(device), persistent=False)
        if self.parameters_.short is not None:
            self.register_buffer("short_inv_freq", self.parameters_.short.inv_freq().to(device), persistent=False)

    def forward(self, positions: Tensor, max_model_len: int | None = None) -> Rotary:
        """Positions int32 [T] -> Rotary with cos and sin float32 [T, dim/2].

        `max_model_len`: tokens of the longest sequence that the cache admits; matters for LongRoPE only. None: unknown,
        which counts as long.
        """
        parameters, inv_freq = self.parameters_, self.inv_freq
        original = parameters.original_max_position_embeddings
        if parameters.short is not None and max_model_len is not None and max_model_len <= original:
            parameters, inv_freq = parameters.short, self.short_inv_freq
        return kernels.rotary(
            positions, inv_freq, attention_scaling=parameters.attention_scaling, interleaved=parameters.interleaved
        )

    if TYPE_CHECKING:
        __call__ = forward


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's temperature: 0.1 mscale ln(factor) + 1, and 1 where nothing is stretched (arXiv 2309.00071, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def longrope_scaling(factor: float, original_max_position_embeddings: int) -> float:
    """LongRoPE's temperature: sqrt(1 + ln(factor) / ln(original context)), 1 without stretching (arXiv 2402.13753)."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_max_position_embeddings))


def _longrope_from_hf(
    base: RopeParameters, raw: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> RopeParameters:
    """`short_factor`, `long_factor`, `original_max_position_embeddings`; `short_mscale` and `long_mscale` (PhiMoE)."""
    # As in transformers, the key of the root wins.
    original = config.get("original_max_position_embeddings") or raw.get("original_max_position_embeddings")
    limit = _original_context(original, "original_max_position_embeddings", where)
    if (factor := raw.get("factor")) is None:
        factor = _positive(config.get("max_position_embeddings"), "max_position_embeddings", where) / limit
    scales = {key: raw.get(key, raw.get("attention_factor")) for key in ("short_mscale", "long_mscale")}
    long, short = (
        replace(
            base,
            type="longrope",
            factor=_positive(factor, "rope_scaling.factor", where),
            original_max_position_embeddings=limit,
            attention_factor=None if scale is None else _positive(scale, f"rope_scaling.{form}_mscale", where),
            factors=_factor_list(raw.get(f"{form}_factor"), base.dim, f"rope_scaling.{form}_factor", where),
        )
        for form, scale in (("long", scales["long_mscale"]), ("short", scales["short_mscale"]))
    )
    return replace(long, short=short)


def _longrope_from_gguf(base: RopeParameters, source: ModelSource) -> RopeParameters:
    """The two tensors, `rope.scaling.original_context_length` and `rope.scaling.attn_factor` (absent: by the rule)."""
    where, key = str(source.path), ".rope.scaling.original_context_length"
    factors = [_divisors(source, name, base.dim) for name in (_LONG, _SHORT)]
    if None in factors:
        raise ConfigError(
            f"{where}: there is no tensor {_LONG if factors[0] is None else _SHORT}",
            remedy="LongRoPE needs both sets of factors: convert the model again",
        )
    original = _original_context(source.key(key, None), key[1:], where)
    scale = source.key(".rope.scaling.attn_factor", None)
    long, short = (
        replace(
            base,
            type="longrope",
            factor=_positive(source.key(".context_length", None), "context_length", where) / original,
            original_max_position_embeddings=original,
            attention_factor=None if scale is None else _positive(scale, "rope.scaling.attn_factor", where),
            factors=divisors,
        )
        for divisors in factors
    )
    return replace(long, short=short)


def _original_context(value: object, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 2:  # the rule divides by its logarithm
        raise ConfigError(f"{where}: {key} is {value!r}", remedy="LongRoPE needs an integer of 2 or more")
    return value


def _factor_list(values: object, dim: int, key: str, where: str) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != dim // 2:
        shown = f"a list of {len(values)}" if isinstance(values, list) else repr(values)
        raise ConfigError(f"{where}: {key} is {shown}", remedy=f"it must be a list of {dim // 2} positive numbers")
    return tuple(_positive(value, f"an element of {key}", where) for value in values)


def _check_type(kind: str, where: str) -> None:
    if kind not in _KNOWN_TYPES:
        raise ConfigError(
            f"{where}: rope type {kind!r} is unknown here",
            remedy=f"known are {', '.join(_KNOWN_TYPES)}; a newer zoo or another plugin may know it",
        )


def _check_yarn_theta(theta: float, where: str) -> None:
    if theta <= 1:
        raise ConfigError(f"{where}: YaRN with a base wavelength (rope_theta) of {theta}", remedy="it must be above 1")


def _positive(value: object, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{where}: {key} is {value!r}", remedy="it must be a positive number")
    return float(value)


def _divisors(source: ModelSource, name: str, dim: int) -> tuple[float, ...] | None:
    """A tensor of divisors, one per rotated pair; None where there is none."""
    info = source.tensors.get(name)
    if info is None:
        return None
    tensor = wrap(info, source.read(info.name))
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != (dim // 2,):
        raise ConfigError(
            f"{source.path}: {name} is {info.type} {list(info.shape)}",
            remedy=f"expected F32 [{dim // 2}], one divisor per rotated pair",
        )
    return tuple(_positive(factor, f"an element of {name}", str(source.path)) for factor in tensor.tolist())
