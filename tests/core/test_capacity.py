"""How much context a model gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.cache.spec import CacheSpec, FullAttention, LatentAttention, RecurrentState, SharedWith, SlidingAttention
from zoo.cache.storage import KVCache
from zoo.engine.capacity import BLOCK_SIZE, CachePlan, block_managers, plan_cache, tokens_held
from zoo.errors import CapacityError, ContextLengthError

FULL = [FullAttention(2, 16)] * 4  # 4 * 2 * 2 * 16 = 256 elements, 512 bytes of float16, a token
PER_TOKEN = 512


def plan(specs: Sequence[CacheSpec] = FULL, **changes: Any) -> CachePlan:
    values: dict[str, Any] = {
        "element_bytes": 2,
        "model_context": 4096,
        "asked_context": None,
        "free_bytes": 1 << 40,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        **changes,
    }
    return plan_cache(specs, **values)


@pytest.mark.parametrize(
    ("changes", "context", "why"),
    [
        ({}, 4096, "what the model was made for"),
        ({"model_context": 1 << 20}, 32768, "by default"),
        ({"free_bytes": 1000 * PER_TOKEN}, 800, "what free memory holds"),
        ({"asked_context": 100}, 100, "as asked"),
        ({"asked_context": 4096}, 4096, "as asked"),
        ({"model_context": 1 << 20, "asked_context": 100_000}, 100_000, "as asked"),
        ({"specs": []}, 4096, "what the model was made for"),
    ],
)
def test_context(changes: dict[str, Any], context: int, why: str) -> None:
    made = plan(**changes)
    assert (made.context, made.why) == (context, why)


def test_more_than_the_model_allows_is_refused() -> None:
    with pytest.raises(ContextLengthError, match=r"context of 4097 .* made for 4096; use --context 4096") as caught:
        plan(asked_context=4097)
    assert (caught.value.tokens, caught.value.context) == (4097, 4096)


def test_more_than_memory_holds_is_refused_with_what_it_holds() -> None:
    free = 5 << 20
    with pytest.raises(
        CapacityError, match=r"needs 2000 MiB .* 4 MiB of the 5 MiB .*; use --context 8192 or"
    ) as caught:
        plan(asked_context=4096_000, model_context=1 << 30, free_bytes=free)
    held = int(caught.value.remedy.split()[2])
    assert plan(asked_context=held, model_context=1 << 30, free_bytes=free).context == held
    with pytest.raises(CapacityError):
        plan(asked_context=held + 1, model_context=1 << 30, free_bytes=free)


@pytest.mark.parametrize("asked", [None, 1])
def test_no_memory_at_all(asked: int | None) -> None:
    with pytest.raises(CapacityError, match="close other programs or take a smaller model"):
        plan(asked_context=asked, free_bytes=PER_TOKEN)


def test_bytes_of_a_token_count_every_kind_of_layer() -> None:
    specs = [
        FullAttention(2, 16, v_head_dim=8),
        SlidingAttention(2, 16, 4),
        LatentAttention(64, 8),
        RecurrentState(((4, 4),)),
        SharedWith(0),
    ]
    elements = 2 * (16 + 8) + 2 * 2 * 16 + 64 + 8
    states = 4 * 4 * 4 * (8 + 1)  # float32, and a row that nobody owns
    assert tokens_held(specs, 2, (elements * 2 * 800 + states) * 5 // 4, 8) == 800
    assert tokens_held(specs, 2, states, 8) == 0


def pool_bytes(specs: Sequence[CacheSpec], made: CachePlan) -> int:
    cache = KVCache(
        specs,
        num_blocks=made.num_blocks,
        block_size=BLOCK_SIZE,
        dtype=torch.float16,
        device=torch.device("meta"),
    )
    return sum(tensor.nbytes for layer in range(len(cache)) for tensor in cache[layer].tensors)


@given(
    context=st.integers(1, 5000),
    free=st.integers(1, 10_000_000),
    window=st.none() | st.integers(1, 300),
    seqs=st.integers(1, 64),
)
def test_one_sequence_always_fits_and_memory_is_never_exceeded(
    context: int, free: int, window: int | None, seqs: int
) -> None:
    specs: list[CacheSpec] = [*FULL, *([] if window is None else [SlidingAttention(2, 16, window)] * 2)]
    try:
        made = plan(specs, model_context=context, free_bytes=free, max_num_seqs=seqs)
    except CapacityError:
        assert tokens_held(specs, 2, free) == 0
        return
    # Block 0 and a block begun come on top of what tokens need.
    block = sum(spec.elements_per_token() for spec in specs) * 2 * BLOCK_SIZE  # type: ignore[union-attr]
    assert pool_bytes(specs, made) <= free * 0.8 + 2 * block
    for manager in block_managers(specs, made):
        computed = 0
        while computed < made.context:
            computed = min(computed + 512, made.context)
            assert manager.can_grow("one", computed)
            manager.grow("one", computed)
            manager.trim("one", computed)


def test_with_memory_enough_every_sequence_gets_the_whole_context() -> None:
    specs = [*FULL, SlidingAttention(2, 16, 50)]
    made = plan(specs, model_context=100, max_num_seqs=8)
    managers = block_managers(specs, made)
    for name in "abcdefgh":
        for manager in managers:
            assert manager.can_grow(name, 100)
            manager.grow(name, 100)


def test_a_window_needs_no_pool_for_the_whole_context() -> None:
    specs = [FullAttention(2, 16), SlidingAttention(2, 16, 64)]
    made = plan(specs, model_context=32768)
    assert made.num_blocks[0] == 8 * 1024 + 1
    assert made.num_blocks[1] < 70
    full, sliding = block_managers(specs, made)
    assert (full.window, sliding.window) == (None, 64)
    # All sequences with a full window, one of them with a chunk of a whole step.
    for name in "abcdefgh":
        for computed in range(512, 2049, 512):
            assert sliding.can_grow(name, computed)
            sliding.grow(name, computed)
            sliding.trim(name, computed)
