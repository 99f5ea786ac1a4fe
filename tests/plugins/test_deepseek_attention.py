"""The latent attention op: both orders of multiplication, alone and mixed in a batch, against plain attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from oracle.gguf_writer import packed
from zoo.batch import Batch, CacheTables
from zoo.cache.spec import LatentAttention
from zoo.cache.storage import CacheEntry
from zoo.kernels import Rotary, attend_latent
from zoo.kernels.attend import reference
from zoo.quant.tensor import QuantTensor

HEADS, NOPE, ROPE, VALUE, RANK, BLOCK = 4, 32, 8, 24, 64, 16
SCALE = 0.2


def ordinary(query: Tensor, key: Tensor, value: Tensor, past: int) -> Tensor:
    """Softmax attention written out: query [n, N, H], key [m, N, H], value [m, N, V], float64."""
    scores = torch.einsum("nhd,mhd->hnm", query, key) * SCALE
    n, m = scores.shape[1:]
    hidden = torch.arange(m)[None] > torch.arange(n)[:, None] + past
    return torch.einsum("hnm,mhv->nhv", scores.masked_fill(hidden, -torch.inf).softmax(-1), value).flatten(1)


class Case:
    """Sequences of (past, new) tokens: their latents, queries and what the op must give."""

    def __init__(self, lengths: list[tuple[int, int]], *, transposed: bool = False, packing: str | None = None) -> None:
        draw = torch.Generator().manual_seed(len(lengths))
        self.lengths = lengths
        self.k_up: Tensor | QuantTensor = torch.randn(HEADS, NOPE, RANK, generator=draw) * 0.2
        self.v_up: Tensor | QuantTensor = torch.randn(HEADS, VALUE, RANK, generator=draw) * 0.2
        k_up, v_up = self.k_up, self.v_up
        if transposed:
            self.k_up = self.k_up.transpose(1, 2).contiguous()
        if packing:
            self.k_up, self.v_up = (quantised(weight, packing) for weight in (self.k_up, self.v_up))
            k_up, v_up = self.k_up.dequantize(), self.v_up.dequantize()
            k_up = k_up.transpose(1, 2) if transposed else k_up
        self.transposed = transposed
        blocks = sum(-(-(past + new) // BLOCK) for past, new in lengths)
        self.cache = torch.full((blocks + 1, BLOCK, RANK + ROPE), torch.nan)
        self.new: list[Tensor] = []
        self.queries: list[Tensor] = []
        self.wanted: list[Tensor] = []
        rows, slots, first = [], [], 1
        for past, new in lengths:
            total = past + new
            latent, rotated = torch.randn(total, RANK, generator=draw), torch.randn(total, ROPE, generator=draw)
            query = torch.randn(new, HEADS, NOPE + ROPE, generator=draw)
            own = list(range(first, first + -(-total // BLOCK)))
            first += len(own)
            place = [own[i // BLOCK] * BLOCK + i % BLOCK for i in range(total)]
            self.cache.flatten(0, 1)[place[:past]] = torch.cat((latent, rotated), -1)[:past]
            self.new.append(torch.cat((latent, rotated), -1)[past:])
            self.queries.append(query)
            key = torch.cat(
                (torch.einsum("mc,hpc->mhp", latent, k_up), rotated[:, None].expand(-1, HEADS, -1)), -1
            ).double()
            value = torch.einsum("mc,hvc->mhv", latent, v_up).double()
            self.wanted.append(ordinary(query.double(), key, value, past).float())
            rows.append(own)
            slots += place[past:]
        width = max(map(len, rows))
        table = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int32)
        news = [new for _, new in lengths]
        positions = [p for past, new in lengths for p in range(past, past + new)]
        totals = [past + new for past, new in lengths]
        self.batch = Batch(
            input_ids=torch.zeros(len(positions), dtype=torch.int32),
            positions=torch.tensor(positions, dtype=torch.int32),
            cu_seqlens=torch.tensor([0, *np.cumsum(news)], dtype=torch.int32),
            seq_lens=torch.tensor(totals, dtype=torch.int32),
            logits_indices=torch.zeros(0, dtype=torch.int32),
            tables={0: CacheTables(block_table=table, slot_mapping=torch.tensor(slots, dtype=torch.int32))},
            query_lens=tuple(news),
            max_query_len=max(news),
            max_seq_len=max(totals),
            request_ids=tuple(map(str, range(len(lengths)))),
        )

    def run(self, op: Callable[..., Tensor] = attend_latent) -> Tensor:
        """The op, with a rotation by nothing: what it rotates is tested with the models."""
        query, new = torch.cat(self.queries), torch.cat(self.new)
        still = Rotary(torch.ones(len(new), ROPE // 2), torch.zeros(len(new), ROPE // 2), interleaved=True)
        entry = CacheEntry(LatentAttention(RANK, ROPE), 0, (self.cache.clone(),))
        return op(
            query[..., :NOPE], query[..., NOPE:], new[:, :RANK], new[:, RANK:], self.k_up, self.v_up, still, self.batch,
            entry, scale=SCALE, k_up_transposed=self.transposed,
        )  # fmt: skip


def quantised(weight: Tensor, kind: str) -> QuantTensor:
    return QuantTensor(kind, tuple(weight.shape), {"data": torch.from_numpy(packed(weight.numpy(), kind))})


BATCHES = {
    "one prefill": [(0, 100)],
    "one token": [(77, 1)],
    "first token": [(0, 1)],
    "a chunk": [(50, 33)],
    "decode": [(5, 1), (90, 1), (31, 1), (32, 1)],
    "mixed": [(0, 90), (40, 1), (7, 2), (64, 60), (0, 1)],
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("form", ["chosen", "absorbed", "expanded"])
def test_equals_plain_attention(monkeypatch: pytest.MonkeyPatch, batch: str, form: str, transposed: bool) -> None:
    case = Case(BATCHES[batch], transposed=transposed)
    if form != "chosen":
        monkeypatch.setattr(reference, "expands", lambda *sizes: form == "expanded")
    found = case.run() if form == "chosen" else case.run(reference.attend_latent)
    assert (found - torch.cat(case.wanted)).abs().max() < 1e-4


@pytest.mark.usefixtures("reference_kernels")
@pytest.mark.parametrize("packing", ["Q8_0", "Q5_0", "IQ4_NL"])
@pytest.mark.parametrize("transposed", [False, True])
def test_both_forms_are_one_on_packed_weights(monkeypatch: pytest.MonkeyPatch, packing: str, transposed: bool) -> None:
    case = Case(BATCHES["mixed"], transposed=transposed, packing=packing)
    assert (case.run() - torch.cat(case.wanted)).abs().max() < 1e-4
    found = []
    for expanded in (False, True):
        monkeypatch.setattr(reference, "expands", lambda *sizes, choice=expanded: choice)
        found.append(case.run(reference.attend_latent))
    assert (found[0] - found[1]).abs().max() < 1e-4
    assert (found[0] - torch.cat(case.wanted)).abs().max() < 1e-4


def test_few_new_tokens_are_absorbed_and_many_expanded() -> None:
    """DeepSeek's sizes: 128 + 128 of 512. Up to 170 new tokens the latent space is cheaper."""
    assert not reference.expands(1, 128, 128, 512)
    assert not reference.expands(170, 128, 128, 512)
    assert reference.expands(171, 128, 128, 512)
    assert reference.expands(512, 128, 128, 512)
