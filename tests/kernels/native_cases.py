"""What the tests of the native ops share: packed weights, batches over a paged cache, and pools."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from zoo.batch import Batch, CacheTables
from zoo.cache.spec import CacheSpec
from zoo.cache.storage import KVCache
from zoo.kernels.native import library
from zoo.kernels.native.pool import Pool, Session, using
from zoo.quant.tensor import QuantTensor

needs_native = pytest.mark.skipif(not library.usable()[0], reason=f"no CPU kernels: {library.usable()[1]}")


@functools.cache
def pool(threads: int) -> Pool:
    return Pool(threads)


def threads(count: int) -> AbstractContextManager[None]:
    """Ops inside run on so many threads."""
    return using(Session(pool(count)))


def on_both(function: Callable[[], Tensor]) -> Tensor:
    """What a function gives on one thread; the same bits are demanded of two and three."""
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(function())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    return results[0]


def q8_0(*shape: int, seed: int = 0) -> QuantTensor:
    """A random Q8_0 weight: float16 scale, then 32 int8."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (*shape[:-1], shape[-1] // 32, 34), generator=generator, dtype=torch.uint8)
    scale = (torch.rand((*shape[:-1], shape[-1] // 32, 1), generator=generator) * 0.01 + 0.001).half()
    blocks[..., :2] = scale.view(torch.uint8)
    return QuantTensor("Q8_0", shape, {"data": blocks.flatten(-2)})


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def cache_of(spec: CacheSpec, dtype: torch.dtype, blocks: int = 64, block_size: int = 16) -> KVCache:
    """A cache of one layer whose unwritten memory is NaN."""
    cache = KVCache([spec], num_blocks={0: blocks}, block_size=block_size, dtype=dtype, device=torch.device("cpu"))
    for tensor in cache[0].tensors:
        tensor[1:].fill_(float("nan"))
    return cache


def batch_of(lengths: Sequence[tuple[int, int]], block_size: int = 16, *, padding: int = 0) -> Batch:
    """Sequences by (tokens before, new tokens), their blocks out of order; `padding` tokens at the end."""
    news, ends = [new for _, new in lengths], [old + new for old, new in lengths]
    widest = max(-(-end // block_size) for end in ends)
    table = torch.zeros((len(lengths), widest), dtype=torch.int32)
    free = list(range(1, 1 + sum(-(-end // block_size) for end in ends)))[::-1]
    for row, end in enumerate(ends):
        for block in range(-(-end // block_size)):
            table[row, block] = free.pop(len(free) // 2)
    positions = torch.cat([torch.arange(old, end) for (old, _), end in zip(lengths, ends, strict=True)])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(news))
    slots = table[owner, positions // block_size] * block_size + positions % block_size
    fill = (torch.full((padding,), -1, dtype=torch.int32), torch.zeros(padding, dtype=torch.int32))
    return Batch(
        input_ids=torch.zeros(len(positions) + padding, dtype=torch.int32),
        positions=torch.cat((positions.int(), fill[1])),
        cu_seqlens=torch.tensor([0, *torch.tensor(news).cumsum(0)], dtype=torch.int32),
        seq_lens=torch.tensor(ends, dtype=torch.int32),
        logits_indices=torch.zeros(1, dtype=torch.int32),
        tables={0: CacheTables(block_table=table, slot_mapping=torch.cat((slots.int(), fill[0])))},
        query_lens=tuple(news),
        max_query_len=max(news),
        max_seq_len=max(ends),
        request_ids=tuple(map(str, range(len(lengths)))),
    )
