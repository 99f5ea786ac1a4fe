"""The loop: schedule, run, sample. One thread owns an engine."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from zoo.cache.blocks import BlockManager
from zoo.engine.ending import computing
from zoo.engine.runner import Runner
from zoo.engine.sampler import Sampler
from zoo.engine.scheduler import Chunk, Scheduler
from zoo.engine.sequence import SamplingParams, Sequence


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step did: sequences that got a token or ended, and how many tokens went through the model."""

    advanced: tuple[Sequence, ...]
    num_tokens: int


class Engine:
    """Runs any number of sequences through one model in steps."""

    def __init__(self, runner: Runner, sampler: Sampler, scheduler: Scheduler) -> None:
        self.runner = runner
        self.sampler = sampler
        self.scheduler = scheduler
        self.active: tuple[Sequence, ...] = ()
        """The sequences of the step that runs, or ran last: those that a step which raises is about."""

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.scheduler.add(sequence)

    def step(self) -> StepOutput:
        """Run the model once over what the scheduler picks. Finished sequences have left the engine afterwards.

        Raises what the model raises; then nothing has changed. What fails for one sequence alone ends it, with its
        `error` set.
        """
        with computing():
            return self._step()

    def _step(self) -> StepOutput:
        self.active = tuple(self.scheduler.running)
        chunks = self.scheduler.schedule()
        if not chunks:
            return StepOutput((), 0)
        self.active = tuple(chunk.sequence for chunk in chunks)
        sequences = [chunk.sequence for chunk in chunks if chunk.is_last]
        tokens = self._decoded(chunks, sequences)
        if tokens is None:
            with self.runner.active(), torch.inference_mode():
                tokens = self._sampled(chunks, sequences)
        # Only now, so that a step that failed can be repeated.
        for chunk in chunks:
            self.scheduler.computed(chunk)
        for sequence, token in zip(sequences, tokens, strict=True):
            try:
                if sequence.error is None:
                    sequence.append(token)
            except Exception as error:
                sequence.error = error
            if sequence.error is not None:
                sequence.finish_reason = "abort"
            if sequence.finish_reason is not None:
                self.scheduler.finish(sequence)
        return StepOutput(tuple(sequences), sum(chunk.length for chunk in chunks))

    def _decoded(self, chunks: list[Chunk], sequences: list[Sequence]) -> list[int] | None:
        """The tokens of a step that is replayed up to them; None: this is none."""
        if not self.runner.replays(chunks):
            return None
        decoded = self.runner.decode(chunks, self.scheduler.managers, self.sampler.choices(sequences))
        if decoded is None:
            return None
        logits, tokens = decoded
        if self.sampler.is_plain(sequences):
            return tokens
        with self.runner.active(), torch.inference_mode():
            return self.sampler.sample(logits, sequences, tokens)

    def _sampled(self, chunks: list[Chunk], sequences: list[Sequence]) -> list[int]:
        """The tokens of the sequences whose last chunk is here, after the scores of prompts were noted."""
        logits = self.runner.logits(chunks, self.scheduler.managers)
        ends = list(accumulate(chunk.num_logits for chunk in chunks))
        last = [end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.is_last]
        rows = logits if len(last) == len(logits) else logits[last]
        tokens = self.sampler.sample(rows, sequences) if sequences else []
        for chunk, end in zip(chunks, ends, strict=True):
            if chunk.num_logits and chunk.sequence.wants_prompt_logits(chunk.start):
                self.sampler.score(logits[end - chunk.num_logits : end], chunk.sequence, chunk.start)
        return tokens

    def usable(self) -> bool:
        """Whether the device still computes, after an exception."""
        try:
            return bool(torch.ones((), device=self.runner.device).item() == 1.0)
        except Exception:
            return False

    def stop(self, sequence: Sequence, reason: str) -> None:
        """End a sequence from outside: a stop string ("stop"), or nobody wants it any more ("abort")."""
        if sequence.finish_reason is None:
            sequence.finish_reason = "stop" if reason == "stop" else "abort"
        self.scheduler.finish(sequence)

    def reset(self) -> None:
        """Drop every sequence, forget what blocks hold, and clear the cache's state; its memory stays."""
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            self.stop(sequence, "abort")
        for manager in self.scheduler.managers:
            manager.reset()
        self.runner.plugin.reset_cache(self.runner.model, self.runner.cache)

    def hidden(self, token_ids: tuple[int, ...], chunk_size: int) -> Tensor:
        """Hidden states [T, D] after the final norm for one sequence alone, run in chunks; keeps nothing."""
        sequence = Sequence("scoring", token_ids, SamplingParams(), frozenset(), 1)
        managers = self.scheduler.managers
        parts = []
        try:
            for start in range(0, len(token_ids), chunk_size):
                stop = min(start + chunk_size, len(token_ids))
                chunk = Chunk(sequence, start, stop - start)
                self._grow(managers, sequence, stop)
                batch = self.runner.batch([chunk], managers)
                with self.runner.active():
                    parts.append(self.runner.hidden(batch))
                self.scheduler.computed(chunk)
        finally:
            self.scheduler.finish(sequence)
        return torch.cat(parts)

    def _grow(self, managers: tuple[BlockManager, ...], sequence: Sequence, tokens: int) -> None:
        for manager in managers:
            if not manager.can_grow(sequence.request_id, tokens):
                raise self.scheduler.too_small(sequence)
            manager.grow(sequence.request_id, tokens)
