"""The tensors behind the cache. Pools are allocated, not written: a block's memory is touched by its first token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.cache.spec import (
    CacheGroup,
    CacheSpec,
    FullAttention,
    LatentAttention,
    PagedSpec,
    RecurrentState,
    SharedWith,
    SlidingAttention,
    group_layers,
)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """The cache of one layer as kernels see it.

    `tensors`: FullAttention and SlidingAttention (k [num_blocks, block_size, K, H], v [num_blocks, block_size, K, Hv]);
    LatentAttention (latent [num_blocks, block_size, rank + rope_dim],); RecurrentState ([num_blocks, *shape], ...).
    `group` is the key of its tables in `Batch.tables`, `window` the sliding window or None.
    """

    spec: PagedSpec | RecurrentState
    group: int
    tensors: tuple[Tensor, ...]

    @property
    def window(self) -> int | None:
        """Keys a query may see, itself included; None: all."""
        return self.spec.window if isinstance(self.spec, SlidingAttention) else None


class KVCache:
    """Storage for all layers of one model. Index it by layer."""

    def __init__(
        self,
        specs: Sequence[CacheSpec],
        *,
        num_blocks: Mapping[int, int],
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int | None = None,
    ) -> None:
        """`num_blocks`: size of each group's pool, by group index, block 0 (never handed out) included. A block holds
        `block_size` tokens, or the state of one sequence.

        `max_model_len`: tokens of the longest sequence that will be admitted; None: unknown.
        """
        self.groups = group_layers(specs)
        self.block_size = block_size
        self.dtype = dtype
        self.max_model_len = max_model_len
        entries: dict[int, CacheEntry] = {}
        for group in self.groups:
            for layer in group.layers:
                tensors = _allocate(group, num_blocks[group.index], block_size, dtype, device)
                entries[layer] = CacheEntry(group.spec, group.index, tensors)
        for layer, spec in enumerate(specs):
            if isinstance(spec, SharedWith):
                entries[layer] = entries[spec.layer]
        self._entries = tuple(entries[layer] for layer in range(len(specs)))

    def __getitem__(self, layer: int) -> CacheEntry:
        return self._entries[layer]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes reserved. On a CPU only blocks that were written occupy memory."""
        storages = {t.data_ptr(): t.nbytes for entry in self._entries for t in entry.tensors}
        return sum(storages.values())

    def clear(self, group: int, rows: Sequence[int]) -> None:
        """Zero the states in these rows of a group of recurrent states, for the sequences that begin there."""
        for entry in self._entries:
            if entry.group == group:
                for tensor in entry.tensors:
                    tensor[list(rows)] = 0

    def reset(self) -> None:
        """Zero recurrent states. Paged blocks need it not: kernels read only positions below a sequence's length."""
        for entry in self._entries:
            if isinstance(entry.spec, RecurrentState):
                for tensor in entry.tensors:
                    tensor.zero_()


def _allocate(
    group: CacheGroup, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    spec = group.spec
    if isinstance(spec, RecurrentState):
        kind = torch.float32 if spec.fp32 else dtype
        return tuple(torch.zeros(num_blocks, *shape, dtype=kind, device=device) for shape in spec.shapes)
    if isinstance(spec, LatentAttention):
        widths: tuple[tuple[int, ...], ...] = ((spec.rank + spec.rope_dim,),)
    elif isinstance(spec, FullAttention):
        widths = ((spec.kv_heads, spec.head_dim), (spec.kv_heads, spec.v_head_dim or spec.head_dim))
    else:
        widths = ((spec.kv_heads, spec.head_dim),) * 2
    pools = tuple(torch.empty(num_blocks, block_size, *width, dtype=dtype, device=device) for width in widths)
    for pool in pools:
        pool[:1].zero_()  # block 0 stands where a sliding window has moved on: masked, but NaN would get through
    return pools
