"""The configuration of a DeepSeek, from config.json or from GGUF metadata.

One GGUF architecture name covers V2, V2-Lite, V2.5, V3, R1 and V3.1: what a file is follows from its keys and tensors,
never from its name or number of layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from zoo.errors import ConfigError
from zoo.kernels import Routing
from zoo.nn import RopeParameters
from zoo.nn.rope import yarn_mscale
from zoo.plugin import ConfigReader, ModelSource
from zoo_deepseek.plugin import SPARSE

# More layers than any model predicts tokens with.
_MTP_LIMIT = 16

_Value = TypeVar("_Value", int, float, bool)

# How many tokens V3.2 chooses to attend to, in all releases.
_INDEX_TOPK = 2048

# What releases say in their config.json and their first GGUF files leave out, by number of experts and sigmoid scoring.
_RELEASES: dict[tuple[int, bool], dict[str, Any]] = {
    (160, False): {"groups": 8, "top_groups": 3, "scale": 16.0, "normalize": False},  # V2, V2.5
    (256, True): {"groups": 8, "top_groups": 4, "scale": 2.5, "normalize": True},  # V3, R1, V3.1
}
_PLAIN: dict[str, Any] = {"groups": 1, "top_groups": 1, "scale": 1.0, "normalize": False}
# 0.1 times mscale_all_dim, which is 0.707 in V2 and 1 in V3.
_LOG_MULTIPLIER = {False: 0.0707, True: 0.1}


class DeepseekConfig(BaseModel):
    """Sizes and choices, under their config.json names.

    `moe_layers`: which layers have experts. `softmax_scale` multiplies q.k. `k_b_transposed`: the file stores the keys'
    up-projection of a head as [kv_lora_rank, qk_nope_head_dim]. `ignored_kv_b`: a fused one beside it is not needed.
    `mtp_layers`: layers of the file that predict several tokens at once, which are not part of the model. `notes`: what
    a user should know of this file.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    shared_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    moe_layers: tuple[bool, ...]
    routing: Routing
    correction_bias: bool
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    rope: RopeParameters
    softmax_scale: float
    k_b_transposed: bool
    ignored_kv_b: bool
    mtp_layers: frozenset[int]
    eos_token_ids: tuple[int, ...]
    notes: tuple[str, ...]

    @classmethod
    def from_hf(cls, source: ModelSource) -> DeepseekConfig:
        """From config.json. Raises ConfigError for a missing or impossible value, or one that is not implemented."""
        read = ConfigReader.hf(source)
        read.require("hidden_act", "silu", default="silu")
        read.require("attention_bias", False, default=False)
        layers = read.layers("num_hidden_layers")
        v2 = source.architectures[0] == "DeepseekV2ForCausalLM"
        dense = read.count("first_k_dense_replace", default=0) if v2 else read.count("first_k_dense_replace")
        step = read.size("moe_layer_freq", default=1)
        experts = read.count("n_routed_experts", default=0)
        nope, rope_dim = read.size("qk_nope_head_dim"), read.size("qk_rope_head_dim")
        width = read.size("moe_intermediate_size") if experts else 0
        context = read.size("max_position_embeddings", default=2048)
        if is_sparse(source):
            context = min(context, read.size("index_topk", default=_INDEX_TOPK))
        rope = RopeParameters.from_hf(source, dim=rope_dim, interleaved=read.flag("rope_interleave", default=True))
        routing = _hf_routing(read, experts, v2)
        return cls(
            vocab_size=read.size("vocab_size"),
            hidden_size=read.size("hidden_size"),
            intermediate_size=read.size("intermediate_size"),
            moe_intermediate_size=width,
            shared_intermediate_size=width * read.count("n_shared_experts", default=0),
            num_hidden_layers=layers,
            num_attention_heads=read.size("num_attention_heads"),
            q_lora_rank=read.size("q_lora_rank") if read.get("q_lora_rank", None) is not None else None,
            kv_lora_rank=read.size("kv_lora_rank"),
            qk_nope_head_dim=nope,
            qk_rope_head_dim=rope_dim,
            v_head_dim=read.size("v_head_dim"),
            n_routed_experts=experts,
            moe_layers=tuple(bool(experts) and i >= dense and i % step == 0 for i in range(layers)),
            routing=routing,
            correction_bias=bool(experts) and _topk_method(read, v2) == "noaux_tc",
            max_position_embeddings=context,
            rms_norm_eps=read.number("rms_norm_eps", default=1e-6),
            tie_word_embeddings=read.flag("tie_word_embeddings", default=False),
            rope=rope,
            softmax_scale=_softmax_scale(nope + rope_dim, rope),
            k_b_transposed=False,
            ignored_kv_b=False,
            mtp_layers=_mtp_layers(source, layers, "model.layers.{}.eh_proj.weight"),
            eos_token_ids=read.ids("eos_token_id"),
            notes=_limits(source, context),
        )

    @classmethod
    def from_gguf(cls, source: ModelSource) -> DeepseekConfig:
        """From GGUF metadata and the shapes of tensors.

        Early files lack keys: what then is assumed is said in a note, and `--set` replaces it. Raises ConfigError for a
        missing or impossible value and for attention tensors in no known layout.
        """
        read = ConfigReader.gguf(source)
        if read.get(".attention.temperature_scale", None) is not None:
            raise ConfigError(
                f"{source.path}: {source.architectures[0]}.attention.temperature_scale is given",
                remedy="no DeepSeek scales its queries by position; the model is of another family",
            )
        layers = _gguf_layers(read)
        moe_layers = _gguf_moe_layers(source, read, layers)
        experts = read.count(".expert_count") if any(moe_layers) else 0
        gaps = _Gaps(source, read)
        rope_dim = read.size(".rope.dimension_count")
        key_dim = read.size(".attention.key_length_mla", default=read.get(".attention.key_length", None))
        if key_dim <= rope_dim:
            raise ConfigError(
                f"{source.path}: keys have {key_dim} dimensions, {rope_dim} of them rotated",
                remedy="the metadata is damaged: attention.key_length must exceed rope.dimension_count",
            )
        context = read.size(".context_length", default=2048)
        if is_sparse(source):
            context = min(context, read.size(".attention.indexer.top_k", default=_INDEX_TOPK))
        split = _kv_b_is_split(source)
        rope = _gguf_rope(source, rope_dim, gaps)
        routing = _gguf_routing(read, experts, gaps)
        return cls(
            vocab_size=read.vocab_size(),
            hidden_size=read.size(".embedding_length"),
            intermediate_size=read.size(".feed_forward_length"),
            moe_intermediate_size=_expert_width(source, read, moe_layers),
            shared_intermediate_size=_rows(source, moe_layers, "ffn_gate_shexp.weight"),
            num_hidden_layers=layers,
            num_attention_heads=read.size(".attention.head_count"),
            q_lora_rank=_rows(source, (True,), "attn_q_a.weight") or None,
            kv_lora_rank=_kv_lora_rank(source, read),
            qk_nope_head_dim=key_dim - rope_dim,
            qk_rope_head_dim=rope_dim,
            v_head_dim=read.size(".attention.value_length_mla", default=read.get(".attention.value_length", None)),
            n_routed_experts=experts,
            moe_layers=moe_layers,
            routing=routing,
            correction_bias=any(f"blk.{i}.exp_probs_b.bias" in source.tensors for i in range(layers)),
            max_position_embeddings=context,
            rms_norm_eps=read.number(".attention.layer_norm_rms_epsilon"),
            tie_word_embeddings="output.weight" not in source.tensors,
            rope=rope,
            softmax_scale=_softmax_scale(key_dim, rope),
            k_b_transposed=split,
            ignored_kv_b=split,
            mtp_layers=_mtp_layers(source, layers, "blk.{}.nextn.eh_proj.weight"),
            eos_token_ids=read.ids("tokenizer.ggml.eos_token_id"),
            notes=(*_limits(source, context), *gaps.notes),
        )


def is_sparse(source: ModelSource) -> bool:
    """Whether it is a V3.2: it attends to chosen tokens, which is dense attention as long as all fit the choice."""
    return source.architectures[0] in SPARSE


def _limits(source: ModelSource, context: int) -> tuple[str, ...]:
    if not is_sparse(source):
        return ()
    return (
        f"the sparse attention of DeepSeek-V3.2 is not implemented: up to {context} tokens it is dense attention, and "
        "the context ends there",
    )


def _topk_method(read: ConfigReader, v2: bool) -> str:
    # A default of early V2 configurations is misspelt.
    method: str = read.require(
        "topk_method", "greedy", "gready", "group_limited_greedy", "noaux_tc", default="greedy" if v2 else "noaux_tc"
    )
    return "greedy" if method == "gready" else method


def _hf_routing(read: ConfigReader, experts: int, v2: bool) -> Routing:
    if not experts:
        return Routing(1)
    method = _topk_method(read, v2)
    scoring = read.require("scoring_func", "softmax", "sigmoid", default="softmax" if v2 else "sigmoid")
    groups = 1 if method == "greedy" else read.size("n_group")
    normalize = read.flag("norm_topk_prob", default=False) if v2 else read.flag("norm_topk_prob")
    scale = read.number("routed_scaling_factor", default=1.0) if v2 else read.number("routed_scaling_factor")
    return _routing(
        read,
        experts,
        top_k=read.size("num_experts_per_tok"),
        groups=groups,
        top_groups=read.size("topk_group") if groups > 1 else 1,
        sigmoid=scoring == "sigmoid",
        top2=method == "noaux_tc",
        normalize=normalize,
        # In V2's own code normalised weights are not scaled; in V3's they are both.
        scale=1.0 if v2 and normalize else scale,
    )


def _gguf_routing(read: ConfigReader, experts: int, gaps: _Gaps) -> Routing:
    if not experts:
        return Routing(1)
    groups = gaps.fill(".expert_group_count", "groups", read.size)
    return _routing(
        read,
        experts,
        top_k=read.size(".expert_used_count"),
        groups=groups,
        top_groups=gaps.fill(".expert_group_used_count", "top_groups", read.size) if groups > 1 else 1,
        sigmoid=gaps.sigmoid,
        top2=gaps.sigmoid,
        normalize=gaps.fill(".expert_weights_norm", "normalize", read.flag),
        scale=gaps.fill(".expert_weights_scale", "scale", read.number),
    )


def _routing(
    read: ConfigReader,
    experts: int,
    *,
    top_k: int,
    groups: int,
    top_groups: int,
    sigmoid: bool,
    top2: bool,
    normalize: bool,
    scale: float,
) -> Routing:
    if top_k > experts:
        raise ConfigError(f"{read.where}: {top_k} of {experts} experts are used", remedy="the configuration is damaged")
    if experts % groups or top_groups > groups or top_k > experts // groups * top_groups:
        raise ConfigError(
            f"{read.where}: {experts} experts in {groups} groups, of which {top_groups} are used for {top_k} experts",
            remedy="groups must divide the experts, and the used ones must hold as many as a token uses",
        )
    if top2 and groups > 1 and experts // groups < 2:
        raise ConfigError(
            f"{read.where}: {groups} groups of one expert each, but a group counts by its two best",
            remedy="give each group two experts or more",
        )
    return Routing(
        top_k,
        scoring="sigmoid" if sigmoid else "softmax",
        num_groups=groups,
        top_groups=top_groups,
        group_score="top2" if top2 else "max",
        normalize=normalize,
        scale=scale,
    )


def _softmax_scale(key_dim: int, rope: RopeParameters) -> float:
    """1 / sqrt(key_dim), times YaRN's temperature squared (DeepSeek-V2's modeling code, softmax_scale)."""
    scale = key_dim**-0.5
    if rope.type == "yarn" and rope.mscale_all_dim:
        scale *= yarn_mscale(rope.factor, rope.mscale_all_dim) ** 2
    return scale


def _gguf_rope(source: ModelSource, dim: int, gaps: _Gaps) -> RopeParameters:
    rope = RopeParameters.from_gguf(source, dim=dim, interleaved=True)
    if rope.type != "yarn":
        return rope
    # The key holds 0.1 times mscale_all_dim. Every release has mscale equal to it, so cos and sin keep their size.
    return dataclasses.replace(rope, mscale_all_dim=gaps.log_multiplier() / 0.1, attention_factor=1.0)


class _Gaps:
    """Keys that the first GGUF files of a release lack: what stands in for them, and `notes` that say so."""

    def __init__(self, source: ModelSource, read: ConfigReader) -> None:
        self.read = read
        self.architecture = source.architectures[0]
        self.notes: list[str] = []
        # The first V2 files do not say how experts are scored; only V3 corrects the scores.
        biased = any(name.endswith(".exp_probs_b.bias") for name in source.tensors)
        self.sigmoid = bool(read.require(".expert_gating_func", 1, 2, default=2 if biased else 1) == 2)
        experts = read.count(".expert_count", default=0)
        self.release = _RELEASES.get((experts, self.sigmoid), _PLAIN)

    def fill(self, key: str, name: str, typed: Callable[..., _Value]) -> _Value:
        """The value of a key, or what the release of such a size has: noted, unless it does nothing."""
        assumed = self.release[name]
        if self.read.get(key, None) is None and assumed != _PLAIN[name]:
            self._note(key, assumed)
        return typed(key, default=assumed)

    def log_multiplier(self) -> float:
        """YaRN's, which no other key tells."""
        key, assumed = ".rope.scaling.yarn_log_multiplier", _LOG_MULTIPLIER[self.sigmoid]
        if self.read.get(key, None) is None:
            self._note(key, assumed)
        return self.read.number(key, default=assumed)

    def _note(self, key: str, value: object) -> None:
        self.notes.append(
            f"{self.architecture}{key} is missing, as in the first GGUF files of the model: {value} is assumed "
            f"(--set {key}=VALUE changes it)"
        )


def _gguf_layers(read: ConfigReader) -> int:
    """Layers without those that predict several tokens at once, which the file counts too."""
    layers, extra = read.layers(".block_count"), read.count(".nextn_predict_layers", default=0)
    if extra >= layers:
        raise ConfigError(
            f"{read.where}: {extra} of {layers} layers are for multi-token prediction",
            remedy="this is the prediction head alone: take the whole model",
        )
    return layers - extra


def _gguf_moe_layers(source: ModelSource, read: ConfigReader, layers: int) -> tuple[bool, ...]:
    found = tuple(f"blk.{i}.ffn_gate_inp.weight" in source.tensors for i in range(layers))
    experts = read.count(".expert_count", default=0)
    expected = bool(experts) and read.count(".leading_dense_block_count", default=0) < layers
    if any(found) != expected:
        raise ConfigError(
            f"{source.path}: {source.architectures[0]}.expert_count is {experts}, but "
            f"{sum(found)} layers have a router",
            remedy="the metadata does not belong to the tensors",
        )
    return found


def _kv_b_is_split(source: ModelSource) -> bool:
    """Whether keys and values have up-projections of their own (with or without the fused one beside them)."""
    parts = [f"blk.0.{name}.weight" in source.tensors for name in ("attn_k_b", "attn_v_b")]
    if all(parts):
        return True
    if not any(parts) and "blk.0.attn_kv_b.weight" in source.tensors:
        return False
    raise ConfigError(
        f"{source.path}: blk.0 has neither attn_kv_b nor both attn_k_b and attn_v_b",
        remedy="the file is incomplete, or its attention is in a layout that is unknown here",
    )


def _kv_lora_rank(source: ModelSource, read: ConfigReader) -> int:
    norm = source.tensors.get("blk.0.attn_kv_a_norm.weight")
    return read.size(".attention.kv_lora_rank", default=norm.shape[0] if norm else None)


def _expert_width(source: ModelSource, read: ConfigReader, moe_layers: tuple[bool, ...]) -> int:
    if not any(moe_layers):
        return 0
    down = source.tensors.get(f"blk.{moe_layers.index(True)}.ffn_down_exps.weight")
    return read.size(".expert_feed_forward_length", default=down.shape[-1] if down else None)


def _rows(source: ModelSource, layers: tuple[bool, ...], name: str) -> int:
    """Rows of a tensor in the first layer of those marked; 0 where it has none."""
    info = source.tensors.get(f"blk.{layers.index(True)}.{name}") if any(layers) else None
    return info.shape[0] if info else 0


def _mtp_layers(source: ModelSource, layers: int, mark: str) -> frozenset[int]:
    """Layers past the last that have the projection only multi-token prediction has."""
    return frozenset(i for i in range(layers, layers + _MTP_LIMIT) if mark.format(i) in source.tensors)
