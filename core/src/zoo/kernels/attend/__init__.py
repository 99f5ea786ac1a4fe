"""Rotation, cache write and attention of one layer, in one op, so that a kernel can fuse them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from zoo.batch import Batch
from zoo.kernels.registry import implementation
from zoo.kernels.rotary import Rotary
from zoo.quant.tensor import QuantTensor

if TYPE_CHECKING:
    from zoo.cache.storage import CacheEntry

__all__ = ["attend", "attend_latent"]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: Rotary | None,
    batch: Batch,
    kv: CacheEntry,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention with grouped heads over the paged cache.

    q: [T, N, H]; k: [T, K, H]; v: [T, K, Hv], N a multiple of K. Rotates q and k (`rotary` None: no rotation), writes k
    and v into `kv`, then attends over everything the cache holds of each sequence, within `kv.window` if it has one.
    Scores are multiplied by `scale` (per unit of q.k), capped to softcap * tanh(score / softcap) where given; `sinks`
    [N] adds one logit per head to the denominator. Returns [T, N * Hv] in the dtype of q; padding tokens give zeros.
    """
    result: Tensor = implementation("attend", q.device.type)(
        q, k, v, rotary, batch, kv, scale=scale, softcap=softcap, sinks=sinks
    )
    return result


def attend_latent(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    k_up: Tensor | QuantTensor,
    v_up: Tensor | QuantTensor,
    rotary: Rotary,
    batch: Batch,
    kv: CacheEntry,
    *,
    scale: float,
    k_up_transposed: bool = False,
) -> Tensor:
    """Multi-head latent attention over a cache of latents (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    q_nope: [T, N, P]; q_rope: [T, N, R]; latent: [T, C], normalised; k_rope: [T, R], one for all heads.
    k_up: [N, P, C], or [N, C, P] with `k_up_transposed`; v_up: [N, V, C]. Rotates q_rope and k_rope, writes
    (latent, k_rope) into `kv` and attends with the keys (k_up latent, k_rope) and the values v_up latent of each head.
    Two orders of multiplication give the same: absorbed (queries are taken into the latent space, for few new tokens)
    and expanded (keys and values are taken out of it, for many). Returns [T, N * V] in the dtype of q_nope.
    """
    result: Tensor = implementation("attend_latent", q_nope.device.type)(
        q_nope, q_rope, latent, k_rope, k_up, v_up, rotary, batch, kv, scale=scale, k_up_transposed=k_up_transposed
    )
    return result
