"""Decode steps that were recorded once and are run again in one call.

A step of S sequences with one new token each does the same work whatever the tokens: only the contents of the batch's
index tensors change, and kernels read those from memory. So the first step of each S is recorded on input buffers that
stay, and later steps are copied into them: the whole step where the hook `forward` is the one that zoo has itself. Any
other runs each time, on a stand-in for the model whose `hidden` is replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from zoo.batch import Batch, CacheTables
from zoo.cache.spec import RecurrentState
from zoo.cache.storage import KVCache
from zoo.hooks import CausalLM
from zoo.kernels.native.pool import Pool, session
from zoo.kernels.native.recorder import Arena, ContractBroken, Program, record

_log = logging.getLogger("zoo")


class Replay:
    """The recorded steps of one model. `stopped` says why it is run op by op, "" while it is not."""

    def __init__(self, model: CausalLM, cache: KVCache, pool: Pool) -> None:
        self.model = model
        self.cache = cache
        self.pool = pool
        self.stopped = ""
        self._arena = Arena()
        self._steps: dict[tuple[int, str], _Step] = {}
        self._whole = True
        self._handles_seen = -1
        self._hooked = False
        if not isinstance(model, nn.Module):
            self.stopped = "the model is no torch module"
        elif any(isinstance(group.spec, RecurrentState) for group in cache.groups):
            self.stopped = "a recurrent state has no native kernels"

    def stand_in(self, batch: Batch) -> CausalLM:
        """The model to give to a hook: one whose `hidden` replays this batch, or says which tokens are of prompts."""
        if not isinstance(self.model, nn.Module):
            return self.model
        replayed = _is_decode(batch) and not self.stopped and not self._has_hooks()
        stand_in = object.__new__(type(self.model))
        # Everything of the model but `hidden`; what is set on the model later is there at the next step.
        stand_in.__dict__ = {**self.model.__dict__, "hidden": self._hidden_of(batch) if replayed else self._computed}
        return stand_in

    def logits(self, batch: Batch) -> Tensor | None:
        """Logits [S, V] of a batch, `model.logits` of `model.hidden`, until the next step; None: it is not replayed."""
        if not self._is_whole() or not _is_decode(batch):
            return None
        try:
            # Each of its tokens wants logits.
            return self._replayed("logits", batch, lambda at: self.model.logits(self.model.hidden(at, self.cache)))
        except ContractBroken:
            self._whole = False  # by `hidden` or by `logits`: the stand-in tells
            return None

    def again(
        self, ids: Items[int], positions: Items[int], tables: Items[tuple[Items[int], Items[int]]]
    ) -> Tensor | None:
        """`logits` of a step of S tokens, each the newest of a sequence; None: there is no recording of it.

        `tables`: per cache group the block table, row by row, and the slots of the tokens.
        """
        step = self._steps.get((len(ids), "logits"))
        if step is None or not self._is_whole():
            return None
        step.write(ids, positions, tables)
        return step.run(self.pool)

    def _is_whole(self) -> bool:
        changed = {"hidden", "logits"} & self.model.__dict__.keys()
        return self._whole and not self.stopped and not changed and not self._has_hooks()

    def _hidden_of(self, expected: Batch) -> Callable[[Batch, KVCache], Tensor]:
        def hidden(batch: Batch, cache: KVCache) -> Tensor:
            # A wrapper may have changed the batch: then it is no recorded step.
            if batch is not expected or cache is not self.cache:
                return self._computed(batch, cache)
            try:
                # A copy: a wrapper may keep them, and the next step writes there again.
                return self._replayed("hidden", batch, lambda at: self.model.hidden(at, cache)).clone()
            except ContractBroken as broken:
                self.stopped = str(broken)
                _log.warning("%s runs op by op, which is slower: %s", type(self.model).__name__, broken)
                return self._computed(batch, cache)

        return hidden

    def _computed(self, batch: Batch, cache: KVCache) -> Tensor:
        current = session()
        if batch.prompt_start is not None:
            current.step = len(batch.positions), batch.prompt_start
        try:
            return self.model.hidden(batch, cache)
        finally:
            current.step = None

    def _replayed(self, what: str, batch: Batch, function: Callable[[Batch], Tensor]) -> Tensor:
        """What a function of that name gives for a batch, until the next step. Raises ContractBroken."""
        key = len(batch.query_lens), what
        step = self._steps.get(key)
        if step is not None:
            step.copy(batch)
            return step.run(self.pool)
        step = _Step(key[0], batch, self.cache)
        output = step.record(function, batch, self.pool, self._arena)
        self._steps[key] = step
        return output

    def _has_hooks(self) -> bool:
        """Whether a torch hook is registered on any module: it must see the real calls, so nothing is replayed."""
        every = torch_module._has_any_global_hook()
        # The modules are looked through only after somebody registered something, or while hooks are there.
        if every or self._hooked or self._handles_seen != RemovableHandle.next_id:
            found = every or any(_hooks(module) for module in self.model.modules())  # type: ignore[attr-defined]
            if found and not self._hooked:
                _log.warning("%s runs op by op while a hook is registered on it", type(self.model).__name__)
            self._hooked, self._handles_seen = found, RemovableHandle.next_id
        return self._hooked


class _Step:
    """A step of `size` sequences: its inputs, and what was recorded on them."""

    def __init__(self, size: int, batch: Batch, cache: KVCache) -> None:
        # numpy's zeros, unlike torch's, are not written: of the widest table only the part in use takes memory.
        tables = {
            group: CacheTables(
                block_table=torch.from_numpy(
                    np.zeros((size, max(_widest(cache), table.block_table.shape[1])), np.int32)
                ),
                slot_mapping=torch.empty_like(table.slot_mapping),
            )
            for group, table in batch.tables.items()
        }
        self.inputs = _StepBatch(
            input_ids=torch.empty_like(batch.input_ids),
            positions=torch.empty_like(batch.positions),
            cu_seqlens=batch.cu_seqlens.clone(),
            seq_lens=torch.empty_like(batch.seq_lens),
            logits_indices=batch.logits_indices.clone(),
            tables=tables,
            query_lens=batch.query_lens,
            max_query_len=1,
            max_seq_len=0,
            request_ids=(),
        )
        self._program: Program | None = None
        self._ids, self._positions, self._lengths = (
            x.numpy() for x in (self.inputs.input_ids, self.inputs.positions, self.inputs.seq_lens)
        )
        self._tables = [(table.block_table.numpy(), table.slot_mapping.numpy()) for table in tables.values()]

    def record(self, function: Callable[[Batch], Tensor], batch: Batch, pool: Pool, arena: Arena) -> Tensor:
        self.copy(batch)
        self._program = record(lambda: function(self.inputs), pool, arena)
        return self._program.output

    def run(self, pool: Pool) -> Tensor:
        assert self._program is not None
        self._program.run(pool)
        return self._program.output

    def write(self, ids: Items[int], positions: Items[int], tables: Items[tuple[Items[int], Items[int]]]) -> None:
        self._ids[:] = ids
        self._positions[:] = positions
        self._lengths[:] = self._positions
        self._lengths += 1
        for (table, slots), (rows, places) in zip(self._tables, tables, strict=True):
            part = np.array(rows, np.int32).reshape(len(ids), -1)
            table[:, : part.shape[1]] = part
            slots[:] = places

    def copy(self, batch: Batch) -> None:
        self.inputs.input_ids.copy_(batch.input_ids)
        self.inputs.positions.copy_(batch.positions)
        self.inputs.seq_lens.copy_(batch.seq_lens)
        for group, table in batch.tables.items():
            fixed = self.inputs.tables[group]
            fixed.block_table[:, : table.block_table.shape[1]].copy_(table.block_table)
            fixed.slot_mapping.copy_(table.slot_mapping)


class _StepBatch(Batch):
    """The batch that a step is recorded on. What differs between steps and is no tensor cannot be recorded."""

    __slots__ = ()

    @property
    def max_seq_len(self) -> int:
        raise ContractBroken("the model reads batch.max_seq_len, which differs from step to step")

    @max_seq_len.setter
    def max_seq_len(self, value: int) -> None: ...

    @property
    def request_ids(self) -> tuple[str, ...]:
        raise ContractBroken("the model reads batch.request_ids, which differ from step to step")

    @request_ids.setter
    def request_ids(self, value: tuple[str, ...]) -> None: ...


def _is_decode(batch: Batch) -> bool:
    return (
        batch.max_query_len == 1
        and batch.prompt_start in (None, batch.num_tokens)
        and len(batch.input_ids) == len(batch.query_lens) == len(batch.logits_indices) == batch.num_tokens
        and batch.input_embeds is None
        and batch.lora_index is None
    )


def _widest(cache: KVCache) -> int:
    """Blocks of the longest table: no sequence has more than a whole pool, nor than the context holds."""
    pools = max(entry.tensors[0].shape[0] for entry in (cache[layer] for layer in range(len(cache))))
    context = cache.max_model_len
    return pools if context is None else min(pools, -(-context // cache.block_size) + 1)


def _hooks(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
