"""Steps that were taken down once and are run again in one call.

A step of S sequences with one new token each does the same work whatever the tokens: only the contents of the batch's
index tensors change, and kernels read those from memory. So the first step of each S is recorded on input buffers that
stay, and later steps are copied into them: the whole step up to its tokens where the hook `forward` is the one that zoo
has itself. Any other runs each time, on a stand-in for the model whose `hidden` is replayed. The layers of a step with
prompts are rehearsed once for all sizes; where zoo's own hook runs, their end is computed for the tokens alone whose
logits are wanted.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from zoo import kernels
from zoo.batch import Batch
from zoo.cache.spec import RecurrentState
from zoo.cache.storage import KVCache
from zoo.engine.recorded import DecodeStep, PackedStep
from zoo.engine.sampler import Choices
from zoo.hooks import CausalLM
from zoo.kernels.native.pool import Pool, session
from zoo.kernels.native.recorder import Arena, ContractBroken
from zoo.nn.leaf import Leaf

_log = logging.getLogger("zoo")


class Replay:
    """The steps of one model. `stopped` says why it is run op by op, "" while it is not."""

    def __init__(self, model: CausalLM, cache: KVCache, pool: Pool, most: tuple[int, int]) -> None:
        """`most`: tokens and sequences of the largest step."""
        self.model = model
        self.cache = cache
        self.pool = pool
        self.stopped = ""
        self._arena = Arena()
        self._steps: dict[tuple[int, str], DecodeStep] = {}
        self._whole = True
        self._most = most
        self._packed: PackedStep | None = None
        self._prompts_stopped = False
        self._handles_seen = -1
        self._hooked = False
        self._marks: tuple[int, object] = -1, None
        self._contents: list[object] = []
        if not isinstance(model, nn.Module):
            self.stopped = "the model is no torch module"
        elif any(isinstance(group.spec, RecurrentState) for group in cache.groups):
            self.stopped = "a recurrent state has no native kernels"

    def stand_in(self, batch: Batch) -> CausalLM:
        """The model to give to a hook: one whose `hidden` replays this batch, or says which tokens are of prompts."""
        if not isinstance(self.model, nn.Module):
            return self.model
        replayed = _is_plain(batch) and self._replays()
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

    def wanted(self, batch: Batch) -> Tensor | None:
        """Hidden states [L, D] of the tokens whose logits are wanted, until the next step; None: not of this batch."""
        if not _is_plain(batch) or _is_decode(batch) or not _ascends(batch.logits_indices) or not self._replays():
            return None
        packed = self._packed_for(batch)
        return None if packed is None else packed.run_wanted(batch, self.pool)

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
        return self._whole and not changed and self._replays()

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
            # Copies: a wrapper may keep them, and the next step writes there again.
            if not _is_decode(batch):
                packed = self._packed_for(batch)
                return self._computed(batch, cache) if packed is None else packed.run(batch, self.pool).clone()
            try:
                return self._replayed("hidden", batch, lambda at, _: (self.model.hidden(at, cache),))[0].clone()
            except ContractBroken as broken:
                self.stopped = str(broken)
                _log.warning("%s runs op by op, which is slower: %s", type(self.model).__name__, broken)
                return self._computed(batch, cache)

        return hidden

    def _packed_for(self, batch: Batch) -> PackedStep | None:
        """The layers of a step with prompts; None where they run op by op."""
        if self._packed is None and not self._prompts_stopped:
            try:
                self._packed = PackedStep(
                    lambda at: self._computed(at, self.cache), self.cache, self._most, self.pool, self._arena
                )
            except ContractBroken as broken:
                # Said aloud where decode steps break it too: there it costs more.
                self._prompts_stopped = True
                _log.info("%s computes prompts op by op: %s", type(self.model).__name__, broken)
        return self._packed if self._packed is not None and self._packed.takes(batch) else None

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
        step = DecodeStep(key[0], batch, self.cache, choices)
        outputs = step.record(function, batch, self.pool, self._arena)
        self._steps[key] = step
        return outputs

    def _replays(self) -> bool:
        """Whether steps may be replayed now. Forgets those of the model as it was before something was set on it."""
        if self.stopped:
            return False
        marks = Leaf.changes, self.model.__dict__.get("hidden")
        if marks != self._marks:
            contents = list(_contents(self.model))
            if len(contents) != len(self._contents) or any(map(operator.is_not, contents, self._contents)):
                self._steps.clear()
                self._packed = None
            self._contents, self._marks = contents, marks
        return not self._has_hooks()

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


def _is_decode(batch: Batch) -> bool:
    return (
        _is_plain(batch)
        and batch.max_query_len == 1
        and batch.prompt_start in (None, batch.num_tokens)
        and len(batch.input_ids) == len(batch.query_lens) == len(batch.logits_indices) == batch.num_tokens
    )


def _is_plain(batch: Batch) -> bool:
    return batch.input_embeds is None and batch.lora_index is None


def _ascends(indices: Tensor) -> bool:
    return bool((indices[1:] > indices[:-1]).all())


def _contents(model: Any) -> Iterator[object]:
    """Everything that is set on the modules of a model, with the modules themselves."""
    for module in model.modules():
        yield module
        for value in vars(module).values():
            if isinstance(value, dict):
                yield from value.values()
            else:
                yield value


def _hooks(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
