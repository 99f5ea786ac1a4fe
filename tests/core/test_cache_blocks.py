"""Blocks and their schedule: none lost, none owned twice, whatever happens in whatever order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zoo.cache.blocks import BlockManager
from zoo.engine.scheduler import Chunk, Scheduler
from zoo.engine.sequence import SamplingParams, Sequence
from zoo.errors import CapacityError


def sequence(name: str, prompt: int, max_tokens: int = 100) -> Sequence:
    return Sequence(name, tuple(range(prompt)), SamplingParams(), frozenset(), max_tokens)


def scheduler(blocks: int, *, block_size: int = 4, seqs: int = 8, budget: int = 16) -> Scheduler:
    return Scheduler([BlockManager(blocks + 1, block_size)], max_num_seqs=seqs, max_num_batched_tokens=budget)


def names(chunks: Iterable[Chunk]) -> list[str]:
    return [chunk.sequence.request_id for chunk in chunks]


def run_step(made: Scheduler) -> list[Chunk]:
    """One step as the engine makes it, with a model that always answers 7."""
    chunks = made.schedule()
    sampled = [chunk.sequence for chunk in chunks if chunk.is_last]
    for chunk in chunks:
        made.computed(chunk)
    for one in sampled:
        one.append(7)
        if one.finish_reason is not None:
            made.finish(one)
    return chunks


# --- BlockManager ---


def test_block_zero_is_never_handed_out() -> None:
    manager = BlockManager(5, 4)
    manager.grow("a", 16)
    assert sorted(manager.table("a")) == [1, 2, 3, 4]
    assert manager.num_free == 0
    assert not manager.can_grow("a", 17)
    assert not manager.can_grow("b", 1)


def test_growing_takes_only_what_is_missing() -> None:
    manager = BlockManager(9, 4)
    for tokens, blocks in [(1, 1), (4, 1), (5, 2), (3, 2), (9, 3)]:
        manager.grow("a", tokens)
        assert len(manager.table("a")) == blocks
    assert manager.blocks_needed("a", 13) == 1
    assert manager.blocks_needed("b", 13) == 4


def test_slots_count_tokens_in_the_pool() -> None:
    manager = BlockManager(9, 4)
    manager.grow("a", 10)
    table = manager.table("a")
    assert [manager.slot("a", p) for p in range(10)] == [table[p // 4] * 4 + p % 4 for p in range(10)]
    assert len({manager.slot("a", p) for p in range(10)}) == 10


def test_the_block_freed_last_is_used_first() -> None:
    manager = BlockManager(9, 4)
    manager.grow("a", 4)
    block = manager.table("a")[0]
    manager.free("a")
    manager.grow("b", 4)
    assert manager.table("b") == [block]


def test_freeing_an_unknown_sequence_changes_nothing() -> None:
    manager = BlockManager(3, 4)
    manager.free("nobody")
    assert manager.num_free == 2


def test_reset_takes_everything_back() -> None:
    manager = BlockManager(9, 4, window=4)
    manager.grow("a", 12)
    manager.trim("a", 9)
    manager.grow("b", 5)
    manager.reset()
    assert manager.num_free == 8
    manager.grow("c", 32)
    assert sorted(manager.table("c")) == list(range(1, 9))


@given(window=st.integers(1, 20), block_size=st.integers(1, 6), computed=st.integers(0, 60))
def test_a_window_keeps_exactly_the_blocks_that_later_queries_see(window: int, block_size: int, computed: int) -> None:
    manager = BlockManager(100, block_size, window)
    manager.grow("a", max(computed, 1))
    manager.trim("a", computed)
    for index, block in enumerate(manager.table("a")):
        positions = range(index * block_size, (index + 1) * block_size)
        seen = any(query - window < key <= query for key in positions for query in range(computed, computed + 200))
        assert (block != 0) == seen
    assert manager.num_free == 99 - sum(block != 0 for block in manager.table("a"))


def test_a_window_is_trimmed_more_than_once_and_freed_once() -> None:
    manager = BlockManager(6, 4, window=4)
    for computed in range(1, 200):
        manager.grow("a", computed)
        manager.trim("a", computed)
    assert sum(block != 0 for block in manager.table("a")) <= 2
    manager.free("a")
    assert manager.num_free == 5


def test_without_a_window_nothing_is_trimmed() -> None:
    manager = BlockManager(9, 4)
    manager.grow("a", 32)
    manager.trim("a", 32)
    assert manager.num_free == 0


# --- Scheduler ---


def test_a_long_prompt_is_cut_by_the_budget() -> None:
    made = scheduler(20, budget=5)
    made.add(sequence("a", 12))
    seen = []
    for _ in range(3):
        (chunk,) = made.schedule()
        seen.append((chunk.start, chunk.length, chunk.is_last))
        run_step(made)
    assert seen == [(0, 5, False), (5, 5, False), (10, 2, True)]
    assert [(c.start, c.length) for c in run_step(made)] == [(12, 1)]


def test_a_chunk_holds_tokens_of_the_prompt_or_of_the_answer() -> None:
    """After a preemption both are computed again, each as it was computed at first."""
    made, one = scheduler(20, budget=100), sequence("a", 6)
    for _ in range(5):
        one.append(7)
    made.add(one)
    made.add(sequence("b", 3))
    steps = [[(c.sequence.request_id, c.start, c.length, c.is_prompt) for c in run_step(made)] for _ in range(3)]
    assert steps[0] == [("a", 0, 6, True), ("b", 0, 3, True)]
    assert sorted(steps[1]) == [("a", 6, 5, False), ("b", 3, 1, False)]
    assert sorted(steps[2]) == [("a", 11, 1, False), ("b", 4, 1, False)]


def test_answers_stand_before_prompts() -> None:
    """Also before a prompt that came first and of which one token is left, as of an answer."""
    made, seen = scheduler(20, budget=4), []
    for name, prompt in [("a", 9), ("b", 1)]:
        made.add(sequence(name, prompt))
    for _ in range(5):
        seen.append([(c.sequence.request_id, c.length, c.is_prompt) for c in run_step(made)])
    assert seen[3] == [("b", 1, False), ("a", 1, True)]
    assert all(kinds == sorted(kinds) for kinds in ([is_prompt for *_, is_prompt in step] for step in seen))


def test_sequences_are_admitted_in_the_order_they_came() -> None:
    made = scheduler(20, budget=10)
    for name, prompt in [("a", 8), ("b", 8), ("c", 1)]:
        made.add(sequence(name, prompt))
    first = run_step(made)
    assert [(c.sequence.request_id, c.length) for c in first] == [("a", 5), ("b", 3), ("c", 1)], "half to the first"
    assert sorted(names(run_step(made))) == ["a", "b", "c"]


def test_a_small_sequence_does_not_overtake_one_that_waits_for_blocks() -> None:
    made = scheduler(4, budget=100)
    for name, prompt in [("a", 8), ("b", 12), ("c", 1)]:
        made.add(sequence(name, prompt))
    assert names(made.schedule()) == ["a"]
    assert [one.request_id for one in made.waiting] == ["b", "c"]


def test_max_num_seqs_limits_what_runs() -> None:
    made = scheduler(20, seqs=2, budget=100)
    for name in "abc":
        made.add(sequence(name, 1, max_tokens=1 if name == "a" else 5))
    assert names(run_step(made)) == ["a", "b"]
    assert names(run_step(made)) == ["b", "c"]


def test_running_sequences_come_before_new_prompts() -> None:
    made = scheduler(20, budget=4)
    made.add(sequence("a", 2))
    run_step(made)
    made.add(sequence("b", 9))
    assert [(c.sequence.request_id, c.length) for c in run_step(made)] == [("a", 1), ("b", 3)]


def test_the_youngest_is_preempted_and_computed_again() -> None:
    made = scheduler(4, budget=100)
    old, young = sequence("old", 7, 6), sequence("young", 7, 6)
    made.add(old)
    made.add(young)
    run_step(made)
    run_step(made)
    assert names(run_step(made)) == ["old"]
    assert list(made.waiting) == [young]
    assert (young.num_computed_tokens, young.output_token_ids) == (0, [7, 7])
    while made.has_work:
        chunks = run_step(made)
        assert chunks
    assert old.output_token_ids == young.output_token_ids == [7] * 6
    assert made.managers[0].num_free == 4


def test_preempted_sequences_come_back_before_newcomers_and_in_their_order() -> None:
    made = scheduler(6, budget=100)
    for name in "abc":
        made.add(sequence(name, 8))
    run_step(made)
    made.add(sequence("new", 1))
    run_step(made)  # a needs a third block, and b one: c gives its two
    assert [one.request_id for one in made.running] == ["a", "b"]
    assert [one.request_id for one in made.waiting] == ["c", "new"]


def test_a_sequence_that_alone_outgrows_the_pool_is_refused() -> None:
    made = scheduler(2, budget=100)
    big = sequence("big", 9)
    made.add(big)
    with pytest.raises(CapacityError, match="9 tokens of one sequence do not fit the cache; load with"):
        made.schedule()
    made.finish(big)
    made.add(sequence("small", 8, max_tokens=1))
    assert names(run_step(made)) == ["small"]
    assert made.managers[0].num_free == 2


def test_a_sequence_that_grows_past_the_pool_is_refused() -> None:
    made = scheduler(2, budget=100)
    one = sequence("one", 8)
    made.add(one)
    run_step(made)
    with pytest.raises(CapacityError, match="9 tokens"):
        made.schedule()
    made.finish(one)
    assert not made.has_work
    assert made.managers[0].num_free == 2


# --- Prefix cache ---


def cached(blocks: int = 20, *, window: int | None = None, idle: int | None = None) -> Scheduler:
    managers = [BlockManager(blocks + 1, 4, window, max_idle=idle)]
    return Scheduler(managers, max_num_seqs=8, max_num_batched_tokens=64, prefix_caching=True)


def drain(made: Scheduler) -> None:
    while made.has_work:
        assert run_step(made)


def test_a_second_sequence_begins_with_the_blocks_of_the_first() -> None:
    made = cached()
    first, second = sequence("a", 14, 10), sequence("b", 14, 1)
    made.add(first)
    run_step(made)
    made.add(second)
    chunks = run_step(made)
    assert [(c.sequence.request_id, c.start, c.length) for c in chunks] == [("a", 14, 1), ("b", 12, 2)]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 12)
    assert made.managers[0].num_free == 20 - 4  # b had one of its own and has ended


def test_a_whole_block_is_computed_again_for_its_last_logits() -> None:
    made = cached()
    for name in "ab":
        made.add(sequence(name, 8, 1))
        drain(made)
    again = sequence("c", 8, 1)
    made.add(again)
    assert [(c.start, c.length) for c in made.schedule()] == [(4, 4)]


def test_the_answer_is_known_to_the_next_turn() -> None:
    made = cached()
    one = sequence("a", 6, 6)
    made.add(one)
    drain(made)
    turn = Sequence("b", (*range(6), *one.output_token_ids, 1, 2), SamplingParams(), frozenset(), 1)
    made.add(turn)
    drain(made)
    assert turn.num_cached_tokens == 8  # the newest of its 12 tokens was never computed


def test_another_beginning_shares_nothing() -> None:
    made = cached()
    made.add(sequence("a", 12, 1))
    drain(made)
    other = Sequence("b", (99, *range(1, 12)), SamplingParams(), frozenset(), 1)
    made.add(other)
    drain(made)
    assert other.num_cached_tokens == 0


def test_what_was_not_used_for_longest_is_forgotten_first() -> None:
    made = cached(blocks=6)
    prompts = {name: tuple(range(start, start + 9)) for name, start in [("a", 0), ("b", 100), ("c", 200)]}

    def ask(name: str) -> int | None:
        one = Sequence(name, prompts[name], SamplingParams(), frozenset(), 1)
        made.add(one)
        drain(made)
        return one.num_cached_tokens

    assert [ask("a"), ask("b"), ask("a"), ask("c")] == [0, 0, 8, 0]
    assert [ask("a"), ask("c")] == [8, 8]
    assert ask("b") in (0, 4)


def test_a_model_without_a_cache_runs() -> None:
    made = Scheduler([], max_num_seqs=8, max_num_batched_tokens=64, prefix_caching=True)
    made.add(sequence("a", 14, 2))
    drain(made)
    assert not made.has_work


def test_the_idle_part_is_bounded() -> None:
    made = cached(idle=2)
    for start in range(0, 500, 100):
        made.add(Sequence(f"r{start}", tuple(range(start, start + 17)), SamplingParams(), frozenset(), 1))
        drain(made)
        assert len(made.managers[0]._idle) <= 2
    assert made.managers[0].num_free == 20


def test_a_scored_prompt_is_computed_whole() -> None:
    made = cached()
    made.add(sequence("a", 12, 1))
    drain(made)
    scored = Sequence("b", tuple(range(12)), SamplingParams(logprobs=0, prompt_logprobs=True), frozenset(), 1)
    made.add(scored)
    (chunk,) = made.schedule()
    assert (chunk.start, chunk.length, chunk.num_logits) == (0, 12, 12)


def test_a_window_needs_only_its_last_blocks() -> None:
    manager = BlockManager(20, 4, window=5)
    manager.grow("a", 16)
    digests = [bytes([index]) for index in range(4)]
    for index in (1, 2, 3):
        manager.name("a", index, digests[index])
    manager.free("a")
    assert not manager.holds(digests[:1])  # the query at 4 sees 0 to 4
    assert manager.holds(digests[:2])  # the query at 8 sees 4 to 8
    manager.adopt("b", digests)  # the query at 16 sees 12 to 16
    assert [block != 0 for block in manager.table("b")] == [False, False, False, True]
    assert manager.num_free == 18


def test_a_long_prompt_does_not_hold_up_a_short_one() -> None:
    made = scheduler(200, budget=16)
    made.add(sequence("long", 400, 1))
    run_step(made)
    made.add(sequence("short", 6, 1))
    assert sorted(names(run_step(made))) == ["long", "short"]
    assert not any(one.request_id == "short" for one in made.running), "it has its token already"


class Pool:
    """The memory of one pool: what was written where, as the whole text up to it. A stand-in for keys and values."""

    def __init__(self, manager: BlockManager) -> None:
        self.manager = manager
        self.slots: dict[int, tuple[int, ...]] = {}

    def step(self, chunk: Chunk) -> None:
        """Write a chunk, then read all that its last query sees: each place holds what the text of the sequence
        says.
        """
        one, end = chunk.sequence, chunk.start + chunk.length
        text = tuple(one.token_ids(0, end))
        for position in range(chunk.start, end):
            self.slots[self.manager.slot(one.request_id, position)] = text[: position + 1]
        window = self.manager.window
        # The chunk's first query sees furthest back.
        first = 0 if window is None else max(0, chunk.start - window + 1)
        for position in range(first, end):
            slot = self.manager.slot(one.request_id, position)
            assert slot >= self.manager.block_size, "block 0 is nobody's"
            assert self.slots[slot] == text[: position + 1], f"{one.request_id}, position {position}"


class Interleaving(RuleBasedStateMachine):
    """Add, step, fail and abort in any order, over a pool for all positions and one for a window, prefixes shared."""

    @initialize(
        blocks=st.integers(8, 20),
        block_size=st.integers(1, 4),
        window=st.integers(1, 9),
        seqs=st.integers(1, 5),
        budget=st.integers(1, 12),
        idle=st.none() | st.integers(0, 6),
        caching=st.booleans(),
    )
    def build(
        self, blocks: int, block_size: int, window: int, seqs: int, budget: int, idle: int | None, caching: bool
    ) -> None:
        # Tokens of the longest sequence fit the pool alone, as a cache plan promises.
        self.longest = blocks * block_size
        window_blocks = (window + budget) // block_size + 2
        self.idle = idle
        self.managers = [
            BlockManager(blocks + 1, block_size, max_idle=idle),
            BlockManager(window_blocks + 1, block_size, window, max_idle=idle),
        ]
        self.made = Scheduler(self.managers, max_num_seqs=seqs, max_num_batched_tokens=budget, prefix_caching=caching)
        self.pools = [Pool(manager) for manager in self.managers]
        self.alive: list[Sequence] = []
        self.count = 0

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=40), output=st.integers(1, 20), scored=st.booleans())
    def add(self, prompt: list[int], output: int, scored: bool) -> None:
        # Few tokens, so that beginnings are alike.
        prompt = [0] * (len(prompt) // 2) + prompt[len(prompt) // 2 :]
        prompt = prompt[: self.longest - 1]
        params = SamplingParams(logprobs=0, prompt_logprobs=True) if scored else SamplingParams()
        most = min(output, self.longest - len(prompt))
        one = Sequence(f"r{self.count}", tuple(prompt), params, frozenset(), most)
        self.count += 1
        self.alive.append(one)
        self.made.add(one)

    @rule()
    def step(self) -> None:
        chunks = self.made.schedule()
        assert bool(chunks) == bool(self.alive), "a step with work does some"
        assert sum(chunk.length for chunk in chunks) <= self.made.max_num_batched_tokens
        assert all(chunk.length > 0 for chunk in chunks)
        assert len({chunk.sequence.request_id for chunk in chunks}) == len(chunks)
        decoding = [one for one in self.made.running if one.num_uncomputed == 1]
        if len(decoding) < self.made.max_num_batched_tokens:
            assert {one.request_id for one in decoding} <= set(names(chunks)), "nobody who reads waits for a prompt"
        for chunk in chunks:
            for pool in self.pools:
                pool.step(chunk)
        sampled = [chunk.sequence for chunk in chunks if chunk.is_last]
        for chunk in chunks:
            assert chunk.num_logits == (chunk.length if chunk.sequence.params.prompt_logprobs else chunk.is_last) or (
                chunk.start >= len(chunk.sequence.prompt_token_ids) - 1
            )
            self.made.computed(chunk)
        for one in sampled:
            one.append(len(one.output_token_ids) % 2)
            if one.finish_reason is not None:
                self.made.finish(one)
        self.alive = [one for one in self.alive if one.finish_reason is None]

    @precondition(lambda self: self.alive)
    @rule()
    def failing_step(self) -> None:
        for chunk in self.made.schedule():  # the model raises in the middle: what it wrote is not to be read
            for pool in self.pools:
                for position in range(chunk.start, chunk.start + chunk.length):
                    pool.slots[pool.manager.slot(chunk.sequence.request_id, position)] = ()

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        one = self.alive.pop(data.draw(st.integers(0, len(self.alive) - 1)))
        self.made.finish(one)

    @rule()
    def forget(self) -> None:
        if not self.alive:
            for manager in self.managers:
                manager.reset()
                assert not manager._block_of

    @invariant()
    def every_block_has_one_place(self) -> None:
        running = {one.request_id for one in self.made.running}
        for manager in self.managers:
            owned = [block for name in running for block in manager.table(name) if block]
            places = [*set(owned), *manager._free, *manager._idle]
            assert sorted(places) == list(range(1, manager.num_blocks)), "owned, free or idle, one of them"
            counts = Counter(owned)
            assert all(manager._owners[block] == counts[block] for block in range(1, manager.num_blocks))
            assert all(count == 1 or block in manager._digest_of for block, count in counts.items())
            assert {block: digest for digest, block in manager._block_of.items()} == manager._digest_of
            assert set(manager._idle) <= set(manager._digest_of)
            assert self.idle is None or len(manager._idle) <= self.idle
            assert set(manager._tables) == running, "who waits or has ended owns nothing"

    @invariant()
    def every_sequence_has_one_place(self) -> None:
        placed = [*self.made.running, *self.made.waiting]
        assert sorted(map(id, placed)) == sorted(map(id, self.alive))
        assert len(self.made.running) <= self.made.max_num_seqs
        assert all(one.num_computed_tokens == 0 for one in self.made.waiting)
        order = [int(one.request_id[1:]) for one in placed]
        assert order == sorted(order), "older sequences first, running before waiting"

    @invariant()
    def computed_tokens_that_matter_have_slots(self) -> None:
        for one in self.made.running:
            for manager in self.managers:
                first = 0 if manager.window is None else max(0, one.num_computed_tokens - manager.window + 1)
                blocks = manager.table(one.request_id)
                assert all(blocks[p // manager.block_size] for p in range(first, one.num_computed_tokens))

    def teardown(self) -> None:
        if not hasattr(self, "made"):
            return
        for _ in range(5000):
            if not self.made.has_work:
                break
            self.step()
        assert not self.made.has_work, "everything ends"
        assert all(manager.num_free == manager.num_blocks - 1 for manager in self.managers)


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
