"""How much context a model gets: what it allows and what free memory holds. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zoo.cache.blocks import BlockManager
from zoo.cache.spec import CacheSpec, RecurrentState, SlidingAttention, bytes_per_token, group_layers
from zoo.errors import CapacityError, ContextLengthError

BLOCK_SIZE = 32
"""Tokens per cache block."""

MAX_NUM_SEQS = 64
"""Sequences that run at the same time."""

# A recurrent state is a block that a sequence never fills.
_ENDLESS = 1 << 62

# Part of free memory that the cache may take: activations and the rest of the machine need some.
_SHARE = 0.8

# A default context stops here: nobody who asked for nothing wants a cache of a million tokens.
_DEFAULT_LIMIT = 32768


@dataclass(frozen=True, slots=True)
class CachePlan:
    """`context`: tokens per sequence; `num_blocks`: size of each group's pool; `why`: what limits the context."""

    context: int
    num_blocks: Mapping[int, int]
    why: str


def plan_cache(
    specs: Sequence[CacheSpec],
    *,
    element_bytes: int,
    model_context: int,
    asked_context: int | None,
    free_bytes: int,
    max_num_batched_tokens: int,
    max_num_seqs: int = MAX_NUM_SEQS,
) -> CachePlan:
    """Choose context and pool sizes.

    Raises ContextLengthError where more is asked than the model allows, CapacityError where memory does not hold it.
    """
    per_token = bytes_per_token(specs, element_bytes)
    holds = tokens_held(specs, element_bytes, free_bytes, max_num_seqs)
    states = _state_bytes(specs, element_bytes, max_num_seqs)
    if asked_context is not None:
        if asked_context > model_context:
            raise ContextLengthError(
                f"a context of {asked_context} tokens is asked for, the model was made for {model_context}",
                tokens=asked_context,
                context=model_context,
                remedy=f"use --context {model_context} or less",
            )
        if asked_context > holds:
            raise CapacityError(
                f"a context of {asked_context} tokens needs {asked_context * per_token + states >> 20} MiB of cache, "
                f"which may take {int(free_bytes * _SHARE) >> 20} MiB of the {free_bytes >> 20} MiB that are free",
                remedy=f"use --context {holds} or less" if holds else "close other programs or take a smaller model",
            )
        context, why = asked_context, "as asked"
    else:
        context = min(model_context, holds, _DEFAULT_LIMIT)
        if context < 1:
            raise CapacityError(
                f"no memory is left for a context: one token needs {per_token} bytes"
                f"{f' beside {states} of recurrent states' if states else ''}, {free_bytes} are free",
                remedy="close other programs or take a smaller model",
            )
        why = "what the model was made for" if context == model_context else "by default"
        why = "what free memory holds" if context == holds < min(model_context, _DEFAULT_LIMIT) else why
    # Whole blocks: a sequence of `context` tokens must fit, and all of them if memory holds so much.
    one = -(-context // BLOCK_SIZE)
    tokens = max(one, min(one * max_num_seqs, holds // BLOCK_SIZE)) * BLOCK_SIZE
    return CachePlan(context, _pools(specs, tokens, max_num_seqs, max_num_batched_tokens), why)


def tokens_held(
    specs: Sequence[CacheSpec], element_bytes: int, free_bytes: int, max_num_seqs: int = MAX_NUM_SEQS
) -> int:
    """Tokens of context for which free memory has room, beside the recurrent states of all sequences."""
    per_token = bytes_per_token(specs, element_bytes)
    room = max(0, int(free_bytes * _SHARE) - _state_bytes(specs, element_bytes, max_num_seqs))
    return room // per_token if per_token else (1 << 40 if room else 0)


def block_managers(
    specs: Sequence[CacheSpec], plan: CachePlan, *, idle_tokens: int | None = None
) -> tuple[BlockManager, ...]:
    """One manager per cache group, in the groups' order. `idle_tokens`: what stays known when its sequence has
    ended.
    """
    return tuple(
        BlockManager(
            plan.num_blocks[group.index],
            _ENDLESS if isinstance(group.spec, RecurrentState) else BLOCK_SIZE,
            group.spec.window if isinstance(group.spec, SlidingAttention) else None,
            max_idle=None if idle_tokens is None else -(-idle_tokens // BLOCK_SIZE),
        )
        for group in group_layers(specs)
    )


def _state_bytes(specs: Sequence[CacheSpec], element_bytes: int, max_num_seqs: int) -> int:
    each = sum(spec.bytes_per_sequence(element_bytes) for spec in specs if isinstance(spec, RecurrentState))
    return each * (max_num_seqs + 1)


def _pools(specs: Sequence[CacheSpec], tokens: int, max_num_seqs: int, max_num_batched_tokens: int) -> dict[int, int]:
    blocks = {}
    for group in group_layers(specs):
        if isinstance(group.spec, RecurrentState):
            blocks[group.index] = max_num_seqs + 1
            continue
        held = tokens
        if isinstance(group.spec, SlidingAttention):
            # Every sequence keeps its window; one step adds its tokens, and a window begins and ends inside a block.
            held = min(tokens, max_num_seqs * (group.spec.window + 2 * BLOCK_SIZE) + max_num_batched_tokens)
        blocks[group.index] = -(-held // BLOCK_SIZE) + 1  # and block 0, which nobody gets
    return blocks
