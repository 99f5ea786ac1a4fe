"""Plain torch attention: gathers the pages of each sequence and reads no tensor's value on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.batch import Batch, CacheTables
from zoo.kernels.head_linear.reference import head_linear
from zoo.kernels.rotary import Rotary
from zoo.kernels.rotary.reference import rotate
from zoo.quant.tensor import QuantTensor

if TYPE_CHECKING:
    from zoo.cache.storage import CacheEntry


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
    """See zoo.kernels.attend."""
    if rotary is not None:
        q, k = rotate(q, rotary), rotate(k, rotary)
    tables = batch.tables[kv.group]
    k_cache, v_cache = kv.tensors
    write(k_cache, k, tables, batch)
    write(v_cache, v, tables, batch)
    out = q.new_zeros(q.shape[0], q.shape[1], v.shape[-1])
    for sequence, tokens in _spans(batch):
        keys, values = (gather(cache, sequence, tables, batch).to(q.dtype) for cache in (k_cache, v_cache))
        visible = _visible(sequence, tokens, batch, kv.window)
        out[tokens] = _attention(q[tokens], keys, values, visible, scale, softcap, sinks)
    return out.flatten(1)


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
    """See zoo.kernels.attend."""
    q_rope = rotate(q_rope, rotary)
    tables = batch.tables[kv.group]
    (cache,) = kv.tensors
    write(cache, torch.cat((latent, rotate(k_rope[:, None], rotary)[:, 0]), dim=-1), tables, batch)
    out = q_nope.new_zeros(*q_nope.shape[:2], v_up.shape[1])
    rank = latent.shape[-1]
    for sequence, tokens in _spans(batch):
        keys = gather(cache, sequence, tables, batch).to(q_nope.dtype)[:, None]
        visible = _visible(sequence, tokens, batch, kv.window)
        if expands(tokens.stop - tokens.start, q_nope.shape[-1], v_up.shape[1], rank):
            past = keys[..., :rank].expand(-1, q_nope.shape[1], -1)
            k = head_linear(past, k_up, transposed=k_up_transposed)
            k = torch.cat((k, keys[..., rank:].expand(-1, q_nope.shape[1], -1)), dim=-1)
            v = head_linear(past, v_up)
            out[tokens] = _attention(torch.cat((q_nope, q_rope), -1)[tokens], k, v, visible, scale, None, None)
        else:
            absorbed = head_linear(q_nope[tokens], k_up, transposed=not k_up_transposed)
            query = torch.cat((absorbed, q_rope[tokens]), dim=-1)
            mixed = _attention(query, keys, keys[..., :rank], visible, scale, None, None)
            out[tokens] = head_linear(mixed, v_up)
    return out.flatten(1)


def expands(new_tokens: int, nope_dim: int, v_dim: int, rank: int) -> bool:
    """Whether taking keys and values out of the latent space costs fewer multiplications than taking queries into it.

    Per head and cached token, n new tokens cost n (2 rank + rope) absorbed, and n (nope + rope + v) + rank (nope + v)
    expanded; the rope parts cancel.
    """
    return new_tokens * (2 * rank - nope_dim - v_dim) > rank * (nope_dim + v_dim)


def write(cache: Tensor, new: Tensor, tables: CacheTables, batch: Batch) -> None:
    """Store new rows [T, ...] at their slots of a pool [num_blocks, block_size, ...]; padding at the end is skipped."""
    count = batch.num_tokens
    cache.flatten(0, 1).index_copy_(0, tables.slot_mapping[:count].long(), new[:count].to(cache.dtype))


def gather(cache: Tensor, sequence: int, tables: CacheTables, batch: Batch) -> Tensor:
    """The cached rows of one sequence, [max_seq_len, ...]; rows past its length are zeros."""
    block_size = cache.shape[1]
    blocks = tables.block_table[sequence, : -(-batch.max_seq_len // block_size)]
    rows = cache.index_select(0, blocks).flatten(0, 1)[: batch.max_seq_len]
    valid = torch.arange(batch.max_seq_len, device=rows.device) < batch.seq_lens[sequence]
    # Memory that no token was written to may hold NaN, and 0 * NaN is NaN: clear it rather than mask it.
    return rows.masked_fill(~valid.view(-1, *[1] * (rows.dim() - 1)), 0)


def _spans(batch: Batch) -> Iterator[tuple[int, slice]]:
    """Index and token range of each sequence that has new tokens."""
    start = 0
    for sequence, length in enumerate(batch.query_lens):
        if length:
            yield sequence, slice(start, start + length)
        start += length


def _visible(sequence: int, tokens: slice, batch: Batch, window: int | None) -> Tensor:
    """Bool [n, max_seq_len]: which keys each new token of a sequence may see."""
    query = batch.positions[tokens, None]
    key = torch.arange(batch.max_seq_len, device=query.device)[None, :]
    visible = key <= query
    return visible if window is None else visible & (query - key < window)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """q [n, N, H], k [m, K, H], v [m, K, Hv], visible [n, m] -> [n, N, Hv]."""
    repeat = q.shape[1] // k.shape[1]
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
    if softcap is None and sinks is None:
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=visible, scale=scale)[0]
        return out.transpose(0, 1)
    # No fused attention of torch caps scores or adds sinks, and some drop them silently.
    scores = q.float() @ k.float().transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)), dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[1]]
    return (weights @ v.float()).to(q.dtype).transpose(0, 1)
