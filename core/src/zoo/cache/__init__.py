"""What a model remembers of the tokens it has seen: specs, block accounting and storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.cache.spec import (
    CacheSpec,
    FullAttention,
    LatentAttention,
    RecurrentState,
    SharedWith,
    SlidingAttention,
)

if TYPE_CHECKING:
    from zoo.cache.storage import CacheEntry, KVCache

__all__ = [
    "CacheEntry",
    "CacheSpec",
    "FullAttention",
    "KVCache",
    "LatentAttention",
    "RecurrentState",
    "SharedWith",
    "SlidingAttention",
]


def __getattr__(name: str) -> object:
    # Block accounting and specs are used where torch must not be imported.
    if name in ("CacheEntry", "KVCache"):
        from zoo.cache import storage

        return getattr(storage, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
