"""Native attention over the paged cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from zoo.batch import Batch
from zoo.kernels.attend import reference
from zoo.kernels.head_linear.cpu import head_linear
from zoo.kernels.native import call, structs
from zoo.kernels.rotary import Rotary
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
    cache_type = call.dense_type(kv.tensors[0])
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    angles = () if rotary is None else (rotary.cos, rotary.sin)
    if cache_type is None or not call.matches(q, k, v, *angles) or not q.numel():
        return reference.attend(q, k, v, rotary, batch, kv, scale=scale, softcap=softcap, sinks=sinks)
    tables, (k_cache, v_cache) = batch.tables[kv.group], kv.tensors
    y, sinks = call.empty((q.shape[0], q.shape[1] * v.shape[2])), call.constant(sinks)
    op = structs.Attend(
        code=structs.ATTEND,
        cache_type=cache_type,
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        q_token=q.stride(0),
        q_head=q.stride(1),
        k_token=k.stride(0),
        k_head=k.stride(1),
        v_token=v.stride(0),
        v_head=v.stride(1),
        cos=None if rotary is None else rotary.cos.data_ptr(),
        sin=None if rotary is None else rotary.sin.data_ptr(),
        half=0 if rotary is None else rotary.cos.shape[1],
        interleaved=rotary is not None and rotary.interleaved,
        block_size=k_cache.shape[1],
        k_cache=k_cache.data_ptr(),
        v_cache=v_cache.data_ptr(),
        block_table=tables.block_table.data_ptr(),
        slots=tables.slot_mapping.data_ptr(),
        cu_seqlens=batch.cu_seqlens.data_ptr(),
        seq_lens=batch.seq_lens.data_ptr(),
        positions=batch.positions.data_ptr(),
        table_stride=tables.block_table.stride(0),
        sinks=call.address(sinks),
        y=y.data_ptr(),
        tokens=q.shape[0],
        sequences=len(batch.seq_lens),
        heads=q.shape[1],
        kv_heads=k.shape[1],
        head_dim=q.shape[2],
        v_dim=v.shape[2],
        window=kv.window or 0,
        scale=scale,
        softcap=softcap or 0.0,
    )
    call.run(op, sinks, batch, kv)
    return y


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
    (cache,) = kv.tensors
    cache_type = call.dense_type(cache)
    given = (q_nope, q_rope, latent, k_rope)
    stacks = (call.stack(k_up), call.stack(v_up))
    fits = call.matches(*given, rotary.cos) and all(x.stride(-1) == 1 for x in given) and q_nope.numel()
    if cache_type is None or stacks[0] is None or stacks[1] is None or not fits:
        return reference.attend_latent(
            *given, k_up, v_up, rotary, batch, kv, scale=scale, k_up_transposed=k_up_transposed
        )
    tables, (tokens, heads, nope) = batch.tables[kv.group], q_nope.shape
    rank, v_dim = latent.shape[1], v_up.shape[1]
    expanded = [reference.expands(n, nope, v_dim, rank) for n in batch.query_lens if n]
    # The largest number of new tokens that is absorbed; a sequence's own length decides, not the batch.
    most = max((n for n in batch.query_lens if not reference.expands(n, nope, v_dim, rank)), default=0)
    common: dict[str, Any] = {
        "code": structs.ATTEND_LATENT,
        "cache_type": cache_type,
        "q_rope": q_rope.data_ptr(),
        "r_token": q_rope.stride(0),
        "r_head": q_rope.stride(1),
        "latent": latent.data_ptr(),
        "k_rope": k_rope.data_ptr(),
        "l_token": latent.stride(0),
        "k_token": k_rope.stride(0),
        "cos": rotary.cos.data_ptr(),
        "sin": rotary.sin.data_ptr(),
        "half": rotary.cos.shape[1],
        "interleaved": rotary.interleaved,
        "block_size": cache.shape[1],
        "cache": cache.data_ptr(),
        "block_table": tables.block_table.data_ptr(),
        "slots": tables.slot_mapping.data_ptr(),
        "cu_seqlens": batch.cu_seqlens.data_ptr(),
        "seq_lens": batch.seq_lens.data_ptr(),
        "positions": batch.positions.data_ptr(),
        "table_stride": tables.block_table.stride(0),
        "tokens": tokens,
        "sequences": len(batch.seq_lens),
        "heads": heads,
        "rank": rank,
        "rope": k_rope.shape[1],
        "nope": nope,
        "v_dim": v_dim,
        "most": most,
        "k_up": stacks[0],
        "v_up": stacks[1],
        "k_up_transposed": k_up_transposed,
        "scale": scale,
    }
    kept = (batch, kv, k_up, v_up)
    y = call.empty((tokens, heads, v_dim))
    if not all(expanded):
        query = head_linear(q_nope, k_up, transposed=not k_up_transposed)
        mixed = call.empty((tokens, heads, rank))
        absorbed = structs.AttendLatent(
            **common,
            absorbed=1,
            q=query.data_ptr(),
            q_token=query.stride(0),
            q_head=query.stride(1),
            y=mixed.data_ptr(),
        )
        call.run(absorbed, *kept)
        y = head_linear(mixed, v_up)
    if any(expanded):
        op = structs.AttendLatent(
            **common, absorbed=0, q=q_nope.data_ptr(), q_token=q_nope.stride(0), q_head=q_nope.stride(1), y=y.data_ptr()
        )
        call.run(op, *kept)
    return y.flatten(1)
