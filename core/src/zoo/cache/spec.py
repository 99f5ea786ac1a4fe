"""What each layer needs from the cache, declared by the model. No torch.

A model returns one spec per layer; core groups layers of equal spec, builds the storage and passes it in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FullAttention:
    """Keys and values of every past token: kv_heads x head_dim each (`v_head_dim` where values differ)."""

    kv_heads: int
    head_dim: int
    v_head_dim: int | None = None

    def elements_per_token(self) -> int:
        """Cache elements of one token in one layer."""
        return self.kv_heads * (self.head_dim + (self.v_head_dim or self.head_dim))


@dataclass(frozen=True, slots=True)
class SlidingAttention:
    """As FullAttention, but a query sees only the last `window` keys, itself included."""

    kv_heads: int
    head_dim: int
    window: int

    def elements_per_token(self) -> int:
        """Cache elements of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention: a shared latent of `rank` elements and a rotated key part of `rope_dim`."""

    rank: int
    rope_dim: int

    def elements_per_token(self) -> int:
        """Cache elements of one token in one layer."""
        return self.rank + self.rope_dim


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """A state of fixed size per sequence, one tensor per shape, whatever the length; `fp32` keeps it in float32.

    An op finds the state of a sequence at its row (`CacheTables.state_indices`), moves it on by the new tokens and
    writes it back. It is zeros when the first token of a sequence comes, whoever had the row before.
    """

    shapes: tuple[tuple[int, ...], ...]
    fp32: bool = True

    def elements_per_sequence(self) -> int:
        """State elements of one sequence in one layer."""
        return sum(math.prod(shape) for shape in self.shapes)

    def bytes_per_sequence(self, element_bytes: int) -> int:
        """Bytes of one sequence in one layer, where the cache's elements have `element_bytes`."""
        return self.elements_per_sequence() * (4 if self.fp32 else element_bytes)


@dataclass(frozen=True, slots=True)
class SharedWith:
    """This layer reads and writes the cache of an earlier layer."""

    layer: int


PagedSpec = FullAttention | SlidingAttention | LatentAttention
CacheSpec = FullAttention | SlidingAttention | LatentAttention | RecurrentState | SharedWith


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers of equal spec: they share block tables, each has its own storage. `index` is the key in `Batch.tables`."""

    index: int
    spec: PagedSpec | RecurrentState
    layers: tuple[int, ...]


def group_layers(specs: Sequence[CacheSpec]) -> tuple[CacheGroup, ...]:
    """The groups of a model, in order of their first layer. SharedWith layers have none: they borrow an entry."""
    layers_of: dict[PagedSpec | RecurrentState, list[int]] = {}
    for layer, spec in enumerate(specs):
        if not isinstance(spec, SharedWith):
            layers_of.setdefault(spec, []).append(layer)
    return tuple(CacheGroup(index, spec, tuple(layers)) for index, (spec, layers) in enumerate(layers_of.items()))


def bytes_per_token(specs: Sequence[CacheSpec], element_bytes: int) -> int:
    """Bytes that one more token of context costs over all layers; sliding layers count until their window is full."""
    return element_bytes * sum(
        spec.elements_per_token()
        for spec in specs
        if isinstance(spec, FullAttention | SlidingAttention | LatentAttention)
    )
