"""Attention over the paged cache, under the names that model files use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from zoo import kernels
from zoo.batch import Batch
from zoo.errors import UsageError
from zoo.kernels import attend
from zoo.kernels.rotary import Rotary
from zoo.nn.linear import HeadLinear

if TYPE_CHECKING:
    from zoo.cache.storage import CacheEntry

__all__ = ["attend", "attend_latent"]


def attend_latent(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    k_up: HeadLinear,
    v_up: HeadLinear,
    rotary: Rotary,
    batch: Batch,
    kv: CacheEntry,
    *,
    scale: float,
) -> Tensor:
    """Multi-head latent attention; see `zoo.kernels.attend_latent`.

    k_up takes queries [T, N, P] into the latent space [T, N, C], v_up takes what comes out of it to [T, N, V].
    Raises UsageError for a `v_up` that is stored transposed.
    """
    if v_up.transposed:
        raise UsageError("v_up is stored [N, C, V]", remedy="declare it HeadLinear(..., transposed=False): [N, V, C]")
    return kernels.attend_latent(
        q_nope,
        q_rope,
        latent,
        k_rope,
        k_up.weight,
        v_up.weight,
        rotary,
        batch,
        kv,
        scale=scale,
        k_up_transposed=not k_up.transposed,
    )
