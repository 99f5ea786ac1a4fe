"""Steps that were taken down, with the inputs that they were taken down on."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.batch import Batch, CacheTables
from zoo.cache.storage import KVCache
from zoo.engine.sampler import Choices
from zoo.kernels.native.pool import Pool
from zoo.kernels.native.recorder import Arena, ContractBroken, Program, record
from zoo.kernels.native.template import Counts, Template


class DecodeStep:
    """A step of `size` sequences with one new token each: its inputs, and what was recorded on them."""

    def __init__(self, size: int, batch: Batch, cache: KVCache, choices: Choices | None) -> None:
        tables = {
            group: _zeros(size, max(widest(cache), table.block_table.shape[1])) for group, table in batch.tables.items()
        }
        # All of a step that differs each time lies in one row of memory, so that it is written at once.
        self._numbers = np.zeros((3 + len(tables)) * size, np.int32)
        input_ids, positions, seq_lens, *slots = torch.from_numpy(self._numbers).split(size)
        self.inputs = _StepBatch(
            input_ids=input_ids,
            positions=positions,
            cu_seqlens=batch.cu_seqlens.clone(),
            seq_lens=seq_lens,
            logits_indices=batch.logits_indices.clone(),
            tables={
                group: CacheTables(block_table=table, slot_mapping=places)
                for (group, table), places in zip(tables.items(), slots, strict=True)
            },
            query_lens=batch.query_lens,
            max_query_len=1,
            max_seq_len=0,
            request_ids=(),
        )
        self._tables = [table.numpy() for table in tables.values()]
        self._rows: list[Items[int]] = [() for _ in tables]  # what was written there last
        self.choices = (
            None if choices is None else replace(choices, numbers=choices.numbers.copy(), top_k=choices.top_k.copy())
        )
        self._written = choices
        self._program: Program | None = None

    def record(
        self,
        function: Callable[[Batch, Choices | None], tuple[Tensor, ...]],
        batch: Batch,
        pool: Pool,
        arena: Arena,
    ) -> tuple[Tensor, ...]:
        """Run a function of the inputs for the first time, and take it down. Raises ContractBroken."""
        self.copy(batch)
        self._program = record(lambda: function(self.inputs, self.choices), pool, arena)
        return self._program.outputs

    def takes(self, choices: Choices | None) -> bool:
        """Whether it can be run with these: the address of what is banned is part of a recording."""
        return self.choices is None or (choices is not None and choices.banned is self.choices.banned)

    def run(self, pool: Pool, choices: Choices | None) -> tuple[Tensor, ...]:
        """What the function gave, for what has been written; until the next step."""
        assert self._program is not None
        if self.choices is not None and choices is not None and choices is not self._written:
            # In place: what was recorded reads these very arrays.
            self.choices.numbers[:] = choices.numbers
            self.choices.top_k[:] = choices.top_k
            self._written = choices
        self._program.run(pool)
        return self._program.outputs

    def write(self, ids: Items[int], positions: Items[int], tables: Items[tuple[Items[int], Items[int]]]) -> None:
        """Fill in the inputs; `tables`: block table, row by row, and slots of each cache group."""
        numbers = [*ids, *positions, *(position + 1 for position in positions)]
        for group, (rows, slots) in enumerate(tables):
            numbers += slots
            if rows != self._rows[group]:  # a table grows only by every block
                part = np.array(rows, np.int32).reshape(len(ids), -1)
                self._tables[group][:, : part.shape[1]] = part
                self._rows[group] = rows
        self._numbers[:] = numbers

    def copy(self, batch: Batch) -> None:
        """Fill in the inputs from a batch."""
        self.inputs.input_ids.copy_(batch.input_ids)
        self.inputs.positions.copy_(batch.positions)
        self.inputs.seq_lens.copy_(batch.seq_lens)
        _copy_tables(batch, self.inputs)
        self._rows = [() for _ in self._rows]


class PackedStep:
    """The layers of a step of prompts, with or without answers beside them, of up to so many tokens and sequences."""

    def __init__(
        self, hidden: Callable[[Batch], Tensor], cache: KVCache, most: tuple[int, int], pool: Pool, arena: Arena
    ) -> None:
        """`hidden`: a batch to hidden states [T, D]; `most`: tokens and sequences. Raises ContractBroken."""
        self._most = tokens, sequences = most
        self._ids, self._positions, self._ends, self._seq_lens = (
            _zeros(size) for size in (tokens, tokens, sequences + 1, sequences)
        )
        self._tables = {
            group.index: CacheTables(block_table=_zeros(sequences, widest(cache)), slot_mapping=_zeros(tokens))
            for group in cache.groups
        }
        self._template = Template(
            lambda counts: hidden(self._inputs(*counts)), _FEW, (tokens, sequences, _MOST_ANSWERS), pool, arena
        )

    def takes(self, batch: Batch) -> bool:
        """Whether there is room for its tokens, sequences and blocks."""
        return (
            len(batch.input_ids) <= self._most[0]
            and len(batch.seq_lens) <= self._most[1]
            and all(
                table.block_table.shape[1] <= self._tables[group].block_table.shape[1]
                for group, table in batch.tables.items()
            )
        )

    def run(self, batch: Batch, pool: Pool) -> Tensor:
        """Hidden states [T, D], until the next step."""
        return self._template.run(pool, self._written(batch))

    def run_wanted(self, batch: Batch, pool: Pool) -> Tensor:
        """Hidden states [L, D] of the tokens whose logits are wanted, until the next step.

        `logits_indices` must ascend. The layers' ends are computed for these tokens alone.
        """
        counts, rows = self._written(batch), batch.logits_indices.numpy()
        answers = int(np.searchsorted(rows, counts[2]))
        return self._template.run(pool, counts, (rows, (len(rows), counts[1], answers)))

    def _written(self, batch: Batch) -> Counts:
        """The counts of a batch, with which the inputs were filled in."""
        counts = _counts(batch)
        inputs = self._inputs(*counts)
        inputs.input_ids.copy_(batch.input_ids)
        inputs.positions.copy_(batch.positions)
        inputs.cu_seqlens.copy_(batch.cu_seqlens)
        inputs.seq_lens.copy_(batch.seq_lens)
        _copy_tables(batch, inputs)
        return counts

    def _inputs(self, tokens: int, sequences: int, answers: int) -> Batch:
        """A batch of so many, on the memory where all batches lie."""
        return _PackedBatch(
            input_ids=self._ids[:tokens],
            positions=self._positions[:tokens],
            cu_seqlens=self._ends[: sequences + 1],
            seq_lens=self._seq_lens[:sequences],
            logits_indices=self._ids[:0],
            tables={
                group: CacheTables(block_table=table.block_table[:sequences], slot_mapping=table.slot_mapping[:tokens])
                for group, table in self._tables.items()
            },
            query_lens=(),
            max_query_len=0,
            max_seq_len=0,
            request_ids=(),
            prompt_start=answers,
        )


# Counts of tokens, sequences and tokens of answers for a rehearsal. No two of them may stand in the ratio of their
# largest, and few sizes of a model are multiples of a larger prime.
_FEW, _MOST_ANSWERS = (97, 5, 2), 7


def _counts(batch: Batch) -> Counts:
    tokens = len(batch.input_ids)
    return tokens, len(batch.seq_lens), tokens if batch.prompt_start is None else batch.prompt_start


def _copy_tables(batch: Batch, inputs: Batch) -> None:
    for group, table in batch.tables.items():
        fixed = inputs.tables[group]
        fixed.block_table[:, : table.block_table.shape[1]].copy_(table.block_table)
        fixed.slot_mapping.copy_(table.slot_mapping)


def _unreadable(name: str) -> Any:
    """An attribute of a batch that differs between steps and is no tensor: it cannot be recorded."""

    def read(batch: Batch) -> None:
        raise ContractBroken(f"the model reads batch.{name}, which differs from step to step")

    def write(batch: Batch, value: object) -> None: ...

    return property(read, write)


class _StepBatch(Batch):
    """The batch that a decode step is recorded on."""

    __slots__ = ()
    max_seq_len = _unreadable("max_seq_len")
    request_ids = _unreadable("request_ids")


class _PackedBatch(_StepBatch):
    """The batch that a step of any size is rehearsed on."""

    __slots__ = ()
    query_lens = _unreadable("query_lens")
    max_query_len = _unreadable("max_query_len")
    logits_indices = _unreadable("logits_indices")


def _zeros(*shape: int) -> Tensor:
    # numpy's, unlike torch's, are not written: of the widest table only the part in use takes memory.
    return torch.from_numpy(np.zeros(shape, np.int32))


def widest(cache: KVCache) -> int:
    """Blocks of the longest table: no sequence has more than a whole pool, nor than the context holds."""
    pools = max(entry.tensors[0].shape[0] for entry in (cache[layer] for layer in range(len(cache))))
    context = cache.max_model_len
    return pools if context is None else min(pools, -(-context // cache.block_size) + 1)
