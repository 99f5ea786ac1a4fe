"""Decode steps that were recorded once and are run again in one call.

A step of S sequences with one new token each does the same work whatever the tokens: only the contents of the batch's
index tensors change, and kernels read those from memory. So the first step of each S is recorded on input buffers that
stay, and later steps are copied into them: the whole step up to its tokens where the hook `forward` is the one that zoo
has itself. Any other runs each time, on a stand-in for the model whose `hidden` is replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from zoo import kernels
from zoo.batch import Batch, CacheTables
from zoo.cache.spec import RecurrentState
from zoo.cache.storage import KVCache
from zoo.engine.sampler import Choices
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

    def step(self, batch: Batch, choices: Choices) -> tuple[Tensor, list[int]] | None:
        """Logits [S, V], until the next step, and the tokens drawn from them; None: the batch is not replayed."""
        if not self.is_whole() or not _is_decode(batch):
            return None
        try:
            logits, tokens = self._replayed("step", batch, self._draw, choices)
        except ContractBroken:
            self._whole = False  # by `hidden` or by `logits`: the stand-in tells
            return None
        return logits, tokens.tolist()

    def again(
        self, ids: Items[int], positions: Items[int], tables: Items[tuple[Items[int], Items[int]]], choices: Choices
    ) -> tuple[Tensor, list[int]] | None:
        """`step` of S tokens, each the newest of a sequence, while `is_whole`; None: there is no recording of it.

        `tables`: per cache group the block table, row by row, and the slots of the tokens.
        """
        step = self._steps.get((len(ids), "step"))
        if step is None or not step.takes(choices):
            return None
        step.write(ids, positions, tables)
        logits, tokens = step.run(self.pool, choices)
        return logits, tokens.tolist()

    def is_whole(self) -> bool:
        """Whether steps are replayed up to their tokens."""
        changed = {"hidden", "logits"} & self.model.__dict__.keys()
        return self._whole and not self.stopped and not changed and not self._has_hooks()

    def _draw(self, inputs: Batch, choices: Choices | None) -> tuple[Tensor, ...]:
        assert choices is not None
        # Each of its tokens wants logits.
        logits = self.model.logits(self.model.hidden(inputs, self.cache))
        return logits, kernels.sample(logits, **choices.settings, banned=choices.banned)

    def _hidden_of(self, expected: Batch) -> Callable[[Batch, KVCache], Tensor]:
        def hidden(batch: Batch, cache: KVCache) -> Tensor:
            # A wrapper may have changed the batch: then it is no recorded step.
            if batch is not expected or cache is not self.cache:
                return self._computed(batch, cache)
            try:
                # A copy: a wrapper may keep them, and the next step writes there again.
                return self._replayed("hidden", batch, lambda at, _: (self.model.hidden(at, cache),))[0].clone()
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

    def _replayed(
        self,
        what: str,
        batch: Batch,
        function: Callable[[Batch, Choices | None], tuple[Tensor, ...]],
        choices: Choices | None = None,
    ) -> tuple[Tensor, ...]:
        """What a function of that name gives for a batch, until the next step. Raises ContractBroken."""
        key = len(batch.query_lens), what
        step = self._steps.get(key)
        if step is not None and step.takes(choices):
            step.copy(batch)
            return step.run(self.pool, choices)
        step = _Step(key[0], batch, self.cache, choices)
        outputs = step.record(function, batch, self.pool, self._arena)
        self._steps[key] = step
        return outputs

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

    def __init__(self, size: int, batch: Batch, cache: KVCache, choices: Choices | None) -> None:
        # numpy's zeros, unlike torch's, are not written: of the widest table only the part in use takes memory.
        tables = {
            group: torch.from_numpy(np.zeros((size, max(_widest(cache), table.block_table.shape[1])), np.int32))
            for group, table in batch.tables.items()
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
        self.copy(batch)
        self._program = record(lambda: function(self.inputs, self.choices), pool, arena)
        return self._program.outputs

    def takes(self, choices: Choices | None) -> bool:
        """Whether it can be run with these: the address of what is banned is part of a recording."""
        return self.choices is None or (choices is not None and choices.banned is self.choices.banned)

    def run(self, pool: Pool, choices: Choices | None) -> tuple[Tensor, ...]:
        assert self._program is not None
        if self.choices is not None and choices is not None and choices is not self._written:
            # In place: what was recorded reads these very arrays.
            self.choices.numbers[:] = choices.numbers
            self.choices.top_k[:] = choices.top_k
            self._written = choices
        self._program.run(pool)
        return self._program.outputs

    def write(self, ids: Items[int], positions: Items[int], tables: Items[tuple[Items[int], Items[int]]]) -> None:
        numbers = [*ids, *positions, *(position + 1 for position in positions)]
        for group, (rows, slots) in enumerate(tables):
            numbers += slots
            if rows != self._rows[group]:  # a table grows only by every block
                part = np.array(rows, np.int32).reshape(len(ids), -1)
                self._tables[group][:, : part.shape[1]] = part
                self._rows[group] = rows
        self._numbers[:] = numbers

    def copy(self, batch: Batch) -> None:
        self.inputs.input_ids.copy_(batch.input_ids)
        self.inputs.positions.copy_(batch.positions)
        self.inputs.seq_lens.copy_(batch.seq_lens)
        for group, table in batch.tables.items():
            fixed = self.inputs.tables[group]
            fixed.block_table[:, : table.block_table.shape[1]].copy_(table.block_table)
            fixed.slot_mapping.copy_(table.slot_mapping)
        self._rows = [() for _ in self._rows]


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
