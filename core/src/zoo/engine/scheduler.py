"""Which sequences run in the next step, and how many tokens of each. No torch.

Sequences in decode come first, one token each: nobody who reads an answer waits for somebody's prompt. Prompts share
what the budget leaves, in the order in which they came; while others wait behind it, a prompt takes half of what is
left, so that a long one does not hold up short ones. When blocks run out, the youngest running sequence gives its
blocks back and is computed again later; nothing of its text is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass

from zoo.cache.blocks import BlockManager, block_digest
from zoo.engine.sequence import Sequence
from zoo.errors import CapacityError

# A chunk whose every token needs a row of logits: rows of a large vocabulary are a megabyte each.
_MAX_LOGITS_CHUNK = 128


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `start + length` of a sequence, to be computed in this step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def is_prompt(self) -> bool:
        """Whether its tokens are of the prompt. A chunk has tokens of one kind: kernels may treat them differently."""
        return self.start < len(self.sequence.prompt_token_ids)

    @property
    def is_decode(self) -> bool:
        """Whether it is the newest token of an answer alone."""
        return self.length == 1 and self.is_last and not self.is_prompt

    @property
    def is_last(self) -> bool:
        """Whether the chunk reaches the newest token, so that its logits choose the next."""
        return self.start + self.length == self.sequence.num_tokens

    @property
    def num_logits(self) -> int:
        """How many of its last tokens need logits."""
        return self.length if self.sequence.wants_prompt_logits(self.start) else int(self.is_last)


class Scheduler:
    """Waiting and running sequences over the block managers of all cache groups.

    `prefix_caching`: begin sequences with blocks that are known from others. All managers must have the same block
    size.
    """

    def __init__(
        self,
        managers: Items[BlockManager],
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_caching: bool = False,
    ) -> None:
        self.managers = tuple(managers)
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        # A model without a cache has nothing to share.
        self.prefix_caching = prefix_caching and bool(self.managers)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether any sequence is unfinished."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, in the order of the batch: answers first. Blocks for them are already owned.

        Raises CapacityError if one sequence alone needs more blocks than there are.
        """
        chunks: dict[str, Chunk] = {}
        for sequence in [one for one in self.running if one.num_uncomputed == 1]:
            self._continue(sequence, 1, chunks)
        prompts = [one for one in self.running if one.num_uncomputed > 1]
        for place, sequence in enumerate(prompts):
            self._continue(sequence, self._share(chunks, alone=place == len(prompts) - 1 and not self.waiting), chunks)
        self._admit(chunks)
        return sorted(chunks.values(), key=lambda chunk: chunk.is_prompt)

    def computed(self, chunk: Chunk) -> None:
        """Note that a chunk is in the cache."""
        sequence = chunk.sequence
        sequence.num_computed_tokens = chunk.start + chunk.length
        if self.prefix_caching:
            size = self.managers[0].block_size
            full = sequence.num_computed_tokens // size
            self._hash(sequence, full)
            for index in range(chunk.start // size, full):
                for manager in self.managers:
                    manager.name(sequence.request_id, index, sequence.block_digests[index])
        for manager in self.managers:
            manager.trim(sequence.request_id, sequence.num_computed_tokens)

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)

    def _share(self, chunks: dict[str, Chunk], *, alone: bool) -> int:
        left = self.max_num_batched_tokens - sum(chunk.length for chunk in chunks.values())
        return left if alone else -(-left // 2)

    def _continue(self, sequence: Sequence, share: int, chunks: dict[str, Chunk]) -> None:
        """Give a running sequence at most `share` tokens, if the budget and the blocks reach."""
        if sequence not in self.running:
            return  # preempted for one before it
        length = self._length(sequence, min(share, self._share(chunks, alone=True)))
        if length and self._make_room(sequence, length, chunks):
            chunks[sequence.request_id] = Chunk(sequence, sequence.num_computed_tokens, length)

    def _admit(self, chunks: dict[str, Chunk]) -> None:
        """Let waiting sequences in, in their order, as far as seats, budget and blocks reach."""
        while self.waiting and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            share = self._share(chunks, alone=len(self.waiting) == 1)
            if not share:
                break
            self._adopt(sequence)
            length = self._length(sequence, share)
            if not self._can_grow(sequence, length):
                self._reject(sequence)
                if not self.running:
                    raise self.too_small(sequence)
                break
            self.waiting.popleft()
            self.running.append(sequence)
            self._grow(sequence, length)
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = sequence.num_computed_tokens
            chunks[sequence.request_id] = Chunk(sequence, sequence.num_computed_tokens, length)

    def _length(self, sequence: Sequence, share: int) -> int:
        length = min(share, sequence.num_uncomputed)
        if (prompt := len(sequence.prompt_token_ids) - sequence.num_computed_tokens) > 0:
            length = min(length, prompt)  # what was computed as an answer is computed so again after a preemption
        return min(length, _MAX_LOGITS_CHUNK) if sequence.wants_prompt_logits(sequence.num_computed_tokens) else length

    def _adopt(self, sequence: Sequence) -> None:
        """Begin with the longest known prefix that leaves a token to compute."""
        if not self.prefix_caching or sequence.wants_prompt_logits(0):
            return
        size = self.managers[0].block_size
        known = (sequence.num_tokens - 1) // size
        self._hash(sequence, known)
        digests = sequence.block_digests
        while known and not all(manager.holds(digests[:known]) for manager in self.managers):
            known -= 1
        if known:
            for manager in self.managers:
                manager.adopt(sequence.request_id, digests[:known])
            sequence.num_computed_tokens = known * size

    def _hash(self, sequence: Sequence, blocks: int) -> None:
        size, digests = self.managers[0].block_size, sequence.block_digests
        for index in range(len(digests), blocks):
            digests.append(
                block_digest(digests[-1] if digests else b"", sequence.token_ids(index * size, (index + 1) * size))
            )

    def _make_room(self, sequence: Sequence, length: int, chunks: dict[str, Chunk]) -> bool:
        """Own blocks for `length` more tokens, preempting younger sequences; False if it was itself preempted."""
        while not self._can_grow(sequence, length):
            if len(self.running) == 1:
                raise self.too_small(sequence)
            victim = self.running[-1]
            chunks.pop(victim.request_id, None)
            self._preempt(victim)
            if victim is sequence:
                return False
        self._grow(sequence, length)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._reject(sequence)
        self.waiting.appendleft(sequence)

    def _reject(self, sequence: Sequence) -> None:
        self._free(sequence)
        sequence.num_computed_tokens = 0

    def _can_grow(self, sequence: Sequence, length: int) -> bool:
        total = sequence.num_computed_tokens + length
        return all(manager.can_grow(sequence.request_id, total) for manager in self.managers)

    def _grow(self, sequence: Sequence, length: int) -> None:
        for manager in self.managers:
            manager.grow(sequence.request_id, sequence.num_computed_tokens + length)

    def _free(self, sequence: Sequence) -> None:
        for manager in self.managers:
            manager.free(sequence.request_id)

    def too_small(self, sequence: Sequence) -> CapacityError:
        """The error for a sequence that alone outgrows the cache."""
        return CapacityError(
            f"{sequence.num_tokens} tokens of one sequence do not fit the cache", remedy="load with a larger context"
        )
