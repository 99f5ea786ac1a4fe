"""Turns chunks into a packed batch, runs the model on it and returns logits."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from zoo.batch import Batch, CacheTables
from zoo.cache.blocks import BlockManager
from zoo.cache.spec import RecurrentState
from zoo.cache.storage import KVCache
from zoo.engine.ending import computing
from zoo.engine.replay import Replay
from zoo.engine.sampler import Choices
from zoo.engine.scheduler import Chunk
from zoo.hooks import CausalLM
from zoo.kernels.native.pool import Pool, Session, using
from zoo.plugin.bound import BoundPlugin


class Runner:
    """One model with its cache.

    `pool`: the threads of native CPU kernels, None where the reference computes; `most`: tokens and sequences of the
    largest batch.
    """

    def __init__(
        self,
        plugin: BoundPlugin,
        model: CausalLM,
        cache: KVCache,
        device: torch.device,
        pool: Pool | None,
        most: tuple[int, int],
    ) -> None:
        self.plugin = plugin
        self.model = model
        self.cache = cache
        self.device = device
        self.replay = None if pool is None else Replay(model, cache, pool, most)
        self._session = None if pool is None else Session(pool)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Kernels called inside run on this model's threads, and torch's own threads rest.

        Threads of torch spin for milliseconds after each of its parallel loops, on the cores that the kernels need.
        """
        with computing():
            if self._session is None:
                yield
                return
            threads = torch.get_num_threads()
            if threads > 1:
                torch.set_num_threads(1)
            try:
                with using(self._session):
                    yield
            finally:
                if threads > 1:
                    torch.set_num_threads(threads)

    def batch(self, chunks: Items[Chunk], managers: Items[BlockManager], *, all_logits: bool = False) -> Batch:
        """Pack chunks, those of prompts last. Logits are wanted of the last `num_logits` tokens of each, or of all.

        A recurrent state is zeroed where a sequence begins, so that nothing of the row's last owner is left.
        """
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        ends, bounds = [], [0]
        for chunk in chunks:
            end = chunk.start + chunk.length
            ids += chunk.sequence.token_ids(chunk.start, end)
            positions += range(chunk.start, end)
            wanted += range(len(ids) - (chunk.length if all_logits else chunk.num_logits), len(ids))
            ends.append(end)
            bounds.append(len(ids))
        indices = [ids, positions, bounds, ends, wanted]
        for group, manager in zip(self.cache.groups, managers, strict=True):
            if isinstance(group.spec, RecurrentState):
                indices += self._states(chunks, group.index, manager)
            else:
                indices += _tables(chunks, manager)
        input_ids, places, cu_seqlens, seq_lens, logits_indices, *tables = self._index(indices)
        return Batch(
            input_ids=input_ids,
            positions=places,
            cu_seqlens=cu_seqlens,
            seq_lens=seq_lens,
            logits_indices=logits_indices,
            tables={
                group.index: CacheTables(block_table=table.view(len(chunks), -1), slot_mapping=slots)
                for group, table, slots in zip(self.cache.groups, tables[::2], tables[1::2], strict=True)
            },
            query_lens=tuple(chunk.length for chunk in chunks),
            max_query_len=max(chunk.length for chunk in chunks),
            max_seq_len=max(ends),
            request_ids=tuple(chunk.sequence.request_id for chunk in chunks),
            prompt_start=sum(chunk.length for chunk in chunks if not chunk.is_prompt),
        )

    def replays(self, chunks: Items[Chunk]) -> bool:
        """Whether a step is one that `decode` takes: of newest tokens alone, and recorded here."""
        replay = self.replay if self.plugin.forward_is_plain else None
        return replay is not None and replay.is_whole() and all(chunk.is_decode for chunk in chunks)

    def decode(
        self, chunks: Items[Chunk], managers: Items[BlockManager], choices: Choices
    ) -> tuple[Tensor, list[int]] | None:
        """Logits float32 [S, V], until the next step, and the tokens drawn from them, where `replays` says so.

        None: the model turned out to break the contract, see `logits`.
        """
        assert self.replay is not None
        # Without a batch in between, and nothing of torch: what Python touches left the caches during the last step.
        ids = [chunk.sequence.output_token_ids[-1] for chunk in chunks]
        tables = [_tables(chunks, manager) for manager in managers]
        decoded = self.replay.again(ids, [chunk.start for chunk in chunks], tables, choices)
        if decoded is None:
            with self.active(), torch.inference_mode():
                decoded = self.replay.step(self.batch(chunks, managers), choices)
        return decoded

    @torch.inference_mode()
    def logits(self, chunks: Items[Chunk], managers: Items[BlockManager]) -> Tensor:
        """Logits float32 [L, V] of the tokens of chunks that want them; until the next step."""
        return self.forward(self.batch(chunks, managers))

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits float32 [L, V] through the plugin's hook; until the next step.

        Where the hook is the one that zoo has itself, nothing is computed that no logits need.
        """
        wanted = self.replay.wanted(batch) if self.replay is not None and self.plugin.forward_is_plain else None
        if wanted is not None:
            return self.model.logits(wanted)
        return self.plugin.forward(self._model_for(batch), batch, self.cache)

    @torch.inference_mode()
    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [T, D] after the final norm."""
        return self._model_for(batch).hidden(batch, self.cache)

    def _model_for(self, batch: Batch) -> CausalLM:
        return self.model if self.replay is None else self.replay.stand_in(batch)

    def _states(self, chunks: Items[Chunk], group: int, manager: BlockManager) -> tuple[list[int], list[int]]:
        rows = [row for chunk in chunks for row in manager.table(chunk.sequence.request_id)]
        self.cache.clear(group, [row for row, chunk in zip(rows, chunks, strict=True) if chunk.start == 0])
        return rows, [row for row, chunk in zip(rows, chunks, strict=True) for _ in range(chunk.length)]

    def _index(self, indices: Items[list[int]]) -> tuple[Tensor, ...]:
        """Int32 tensors on the device, in one copy: a step of a small model takes not much longer than many."""
        packed = torch.from_numpy(np.array([value for one in indices for value in one], np.int32)).to(self.device)
        return packed.split([len(one) for one in indices])


def _tables(chunks: Items[Chunk], manager: BlockManager) -> tuple[list[int], list[int]]:
    """The block table of one cache group row by row, and the slots of the new tokens."""
    tables = [manager.table(chunk.sequence.request_id) for chunk in chunks]
    width, size = max(map(len, tables)), manager.block_size
    rows = [block for table in tables for block in (*table, *[0] * (width - len(table)))]
    slots = [
        table[position // size] * size + position % size
        for table, chunk in zip(tables, chunks, strict=True)
        for position in range(chunk.start, chunk.start + chunk.length)
    ]
    return rows, slots
