"""Steps that are replayed against the same ops called one by one: the same bits, and never a stale or a lost one."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels.native_cases import needs_native
from oracle.checkpoints import llama_config, sample_ids, save_checkpoint
from oracle.gemma_checkpoints import gemma_config
from oracle.gguf_writer import llama_contents, write
from oracle.mistral_checkpoints import mistral_config
from oracle.phi_checkpoints import phi2_config, phimoe_config
from oracle.qwen_checkpoints import qwen_config
from zoo import LLM, kernels
from zoo.engine.generation import run
from zoo.engine.replay import Replay
from zoo.engine.runner import Runner
from zoo.engine.sampler import Sampler
from zoo.engine.scheduler import Chunk
from zoo.engine.sequence import SamplingParams, Sequence
from zoo.hooks import hookimpl
from zoo.kernels.native import pool as pools
from zoo.kernels.native import structs
from zoo.kernels.native.pool import Pool
from zoo.kernels.native.recorder import Arena, Program, Recorder
from zoo.kernels.native.template import Template
from zoo_llama.model import LlamaForCausalLM

pytestmark = needs_native

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)

# Step at which a request comes, length of its prompt, tokens that it wants.
REQUESTS = ((0, 5, 30), (0, 17, 4), (3, 1, 20), (9, 40, 3), (10, 2, 1), (11, 33, 12), (30, 3, 9))


class Watch:
    """A wrapper plugin that keeps the logits of every step, by request."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    @hookimpl(wrapper=True)
    def forward(self, batch: Any) -> Any:
        logits = yield
        owners = [name for name, count in zip(batch.request_ids, batch.query_lens, strict=True) for _ in range(count)]
        rows = zip(batch.logits_indices.tolist(), logits, strict=True)
        self.steps.append({owners[index]: row.clone() for index, row in rows})
        return logits


class Become:
    """A plugin that gives Llamas another class after they are loaded."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    @hookimpl(wrapper=True)
    def load(self) -> Any:
        model = yield
        model.__class__ = self.kind
        return model


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 3 layers whose matrices are Q8_0."""
    directory = tmp_path_factory.mktemp("replay")
    model = save_checkpoint(directory, llama_config())
    (path,) = write(directory / "model.gguf", llama_contents(model), types="Q8_0")
    return path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the programs that were replayed."""
    seen: list[int] = []
    run = Program.run

    def counted(self: Program, pool: Pool) -> None:
        seen.append(len(self))
        run(self, pool)

    monkeypatch.setattr(Program, "run", counted)
    return seen


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Tokens, sequences and tokens of answers of the steps with prompts that were replayed."""
    seen: list[tuple[int, ...]] = []
    run = Template.run

    def counted(self: Template, pool: Pool, counts: tuple[int, ...], *wanted: Any) -> Tensor:
        seen.append(counts)
        return run(self, pool, counts, *wanted)

    monkeypatch.setattr(Template, "run", counted)
    return seen


def replay_of(llm: LLM) -> Replay:
    replay = llm.engine.runner.replay
    assert replay is not None
    return replay


def tail_of(llm: LLM) -> int:
    """Ops of a step with prompts that are run for the wanted tokens alone."""
    packed = replay_of(llm)._packed
    return 0 if packed is None else len(packed._template._parts[1])


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def serve(llm: LLM) -> list[Sequence]:
    """Run REQUESTS to their ends, each joining at its step."""
    made = [
        Sequence(str(index), tuple(sample_ids(length, seed=index)), GREEDY, frozenset(), wanted)
        for index, (_, length, wanted) in enumerate(REQUESTS)
    ]
    step = 0
    while any(one.finish_reason is None for one in made):
        for one, (start, *_) in zip(made, REQUESTS, strict=True):
            if start == step:
                llm.engine.add(one)
        llm.engine.step()
        step += 1
        assert step < 200
    return made


def eager(path: Path, ids: list[int], **options: Any) -> list[int]:
    """An answer without any replay."""
    with LLM.load(path, device="cpu", **options) as llm:
        replay_of(llm).stopped = "the test wants it"
        return list(llm.generate(ids, GREEDY).token_ids)


def test_replay_equals_the_ops_one_by_one_while_requests_come_and_go(
    gguf: Path, runs: list[int], prompts: list[tuple[int, ...]]
) -> None:
    watches, tokens = [], []
    for stopped in ("", "the test wants it"):
        watch = Watch()
        with LLM.load(gguf, device="cpu", plugins=[watch]) as llm:
            replay_of(llm).stopped = stopped
            tokens.append([one.output_token_ids for one in serve(llm)])
            assert replay_of(llm).stopped == stopped
        watches.append(watch.steps)
        if not stopped:
            replayed = len(runs)
            assert replayed >= 20
            mixed = list(prompts)
            assert len(mixed) == 6
            assert {answers for _, _, answers in mixed} == {0, 2, 3}
    assert len(runs) == replayed, "nothing may be replayed where it is stopped"
    assert prompts == mixed
    assert tokens[0] == tokens[1]
    assert [len(one) for one in tokens[0]] == [wanted for *_, wanted in REQUESTS]
    assert {len(step) for step in watches[0]} >= {1, 2, 3}
    for mine, wanted in zip(*watches, strict=True):
        assert mine.keys() == wanted.keys()
        assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


def test_prompts_longer_than_a_step_equal_the_ops_one_by_one(tmp_path: Path, prompts: list[tuple[int, ...]]) -> None:
    ids = sample_ids(1200)
    save_checkpoint(tmp_path, llama_config(max_position_embeddings=2048))
    with LLM.load(tmp_path, device="cpu") as llm:
        states = llm.engine.hidden(tuple(ids), 512)
        assert prompts == [(512, 1, 0), (512, 1, 0), (176, 1, 0)]
        assert torch.equal(llm.engine.hidden(tuple(ids), 512), states)
        replay_of(llm).stopped = "the test wants it"
        assert torch.equal(llm.engine.hidden(tuple(ids), 512), states)
    assert len(prompts) == 6


def test_as_many_prompts_as_a_step_takes(gguf: Path, prompts: list[tuple[int, ...]]) -> None:
    many = [sample_ids(2 + index % 5, seed=index) for index in range(80)]
    params = dataclasses.replace(GREEDY, max_tokens=2)
    answers = []
    for stopped in ("", "the test wants it"):
        with LLM.load(gguf, device="cpu") as llm:
            replay_of(llm).stopped = stopped
            answers.append([one.token_ids for one in llm.generate(many, params)])
    assert answers[0] == answers[1]
    assert max(sequences for _, sequences, _ in prompts) == 64


@pytest.mark.parametrize(
    "config",
    [llama_config(), mistral_config("Mixtral 8x7B"), gemma_config("gemma2"), gemma_config("gemma3"),
     qwen_config("qwen2 moe"), phi2_config(), phimoe_config()],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_what_no_logits_need_is_left_out_and_changes_none(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of prompts of which all, one or no logits are wanted, beside answers: each step has the bits of its ops."""
    save_checkpoint(tmp_path, config)
    logits, steps = Runner.logits, [{}, {}]

    def kept(self: Runner, chunks: Any, managers: Any) -> Tensor:
        what = tuple((chunk.sequence.request_id, chunk.start, chunk.length) for chunk in chunks)
        found = steps[bool(replay_of(llm).stopped)][what] = logits(self, chunks, managers).clone()
        return found

    monkeypatch.setattr(Runner, "logits", kept)
    scored = dataclasses.replace(GREEDY, logprobs=0, prompt_logprobs=True)
    for stopped in ("", "the test wants it"):
        with LLM.load(tmp_path, device="cpu", context=128) as llm:
            llm.engine.scheduler.max_num_batched_tokens = 64
            replay_of(llm).stopped = stopped
            for index, (length, params) in enumerate([(110, GREEDY), (5, GREEDY), (20, scored), (90, scored)]):
                llm.engine.add(Sequence(str(index), tuple(sample_ids(length, seed=index)), params, frozenset(), 8))
                llm.engine.step()
            while llm.engine.scheduler.has_work:
                llm.engine.step()
            if not stopped:
                assert tail_of(llm)
    found, wanted = steps
    sizes = {len(one) for one in found.values()}
    assert sizes >= {0, 1}
    assert max(sizes) > 20
    assert all(torch.equal(found[what], wanted[what]) for what in found)


@pytest.mark.parametrize("indices", [[16, 4], [3, 3, 3], list(range(17)), [0], [16]], ids=str)
def test_any_logits_may_be_wanted(gguf: Path, indices: list[int]) -> None:
    with LLM.load(gguf, device="cpu") as llm:
        runner, managers = llm.engine.runner, llm.engine.scheduler.managers
        sequence = Sequence("a", tuple(sample_ids(17)), GREEDY, frozenset(), 8)
        for manager in managers:
            manager.grow("a", 17)
        every = runner.batch([Chunk(sequence, 0, 17)], managers, all_logits=True)
        batch = dataclasses.replace(every, logits_indices=torch.tensor(indices, dtype=torch.int32))
        with runner.active():
            assert torch.equal(runner.forward(batch), runner.forward(every)[indices])


def test_a_wrapper_of_forward_gets_hidden_states_of_all_tokens(gguf: Path) -> None:
    """As the contract of `hidden` says, though no logits are wanted of most."""
    seen: list[Tensor] = []

    class Looks:
        @hookimpl(wrapper=True)
        def forward(self, model: Any, batch: Any, cache: Any) -> Any:
            seen.append(model.hidden(batch, cache))
            return (yield)

    ids = sample_ids(40)
    with LLM.load(gguf, device="cpu", plugins=[Looks()]) as llm:
        llm.generate(ids, dataclasses.replace(GREEDY, max_tokens=1))
        assert torch.equal(seen[0], llm.engine.hidden(tuple(ids), 512))


def test_kernels_are_told_which_tokens_belong_to_prompts(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers and two prompts in one step, then a prompt of one token, which is no step of decoding."""
    told: list[tuple[int, int]] = []
    execute = Pool.execute

    def watched(self: Pool, ops: Any) -> None:
        for address in ops:
            kind = structs.OPS[ctypes.c_int32.from_address(address).value]
            if kind in (structs.Linear, structs.Glu):
                op = kind.from_address(address)
                told.append((op.m, op.prompt))
        execute(self, ops)

    with LLM.load(gguf, device="cpu") as llm:
        for name, length in [("a", 5), ("b", 9)]:
            llm.engine.add(Sequence(name, tuple(sample_ids(length)), GREEDY, frozenset(), 8))
        llm.engine.step()
        llm.engine.step()
        monkeypatch.setattr(Pool, "execute", watched)
        for name, length in [("c", 17), ("d", 3)]:
            llm.engine.add(Sequence(name, tuple(sample_ids(length)), GREEDY, frozenset(), 8))
        llm.engine.step()
        *layers, output, gated, down, head = told
        assert set(layers) == {(22, 2)}, "two answers, then 20 tokens of prompts"
        assert {output, gated, down} == {(4, 2)}, "behind the last attention nothing is computed that no logits need"
        assert head == (4, 4), "the vocabulary is multiplied alike for all"
        for _ in range(8):
            llm.engine.step()
        told.clear()
        llm.generate(sample_ids(1), GREEDY)
        count = len(told) // 8
        assert set(told[: count - 1]) == {(1, 0)}
        assert set(told[count - 1 :]) == {(1, 1)}


def test_answers_do_not_depend_on_what_is_recorded(gguf: Path) -> None:
    """Alone, then beside others in batches of other sizes, then alone again."""
    prompts = [sample_ids(4 + index, seed=index) for index in range(5)]
    with LLM.load(gguf, device="cpu") as llm:
        alone = [llm.generate(prompt, GREEDY).token_ids for prompt in prompts]
        assert [answer.token_ids for answer in llm.generate(prompts, GREEDY)] == alone
        assert [answer.token_ids for answer in llm.generate(prompts[:3], GREEDY)] == alone[:3]
        assert llm.generate(prompts[4], GREEDY).token_ids == alone[4]


def test_tokens_drawn_in_a_recorded_step_are_those_drawn_after_it(gguf: Path, runs: list[int]) -> None:
    """Each by its own parameters, which differ between steps and beside others whose logits are edited."""
    drawn: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True, "temperature": 1.5}
    params = [
        SamplingParams(**drawn, seed=1, top_k=0, top_p=1.0, min_p=0.0),
        SamplingParams(**drawn, seed=2, top_k=5, logprobs=2),
        SamplingParams(**{**drawn, "temperature": 0}),
        SamplingParams(**drawn, seed=3, top_p=0.6, min_p=0.02),
        SamplingParams(**drawn, seed=4, repeat_penalty=1.3, logit_bias={7: 3.0}),
    ]
    prompts = [sample_ids(4 + index, seed=index) for index in range(len(params))]
    groups = ((0,), (1,), (2,), (3,), (4,), (0, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4))
    answers: list[list[tuple[int, ...]]] = []
    for stopped in ("", "the test wants it"):
        with LLM.load(gguf, device="cpu") as llm:
            replay_of(llm).stopped = stopped
            requests = [[llm.request(prompts[i], params[i]) for i in group] for group in groups]
            for group in requests:
                for _ in run(llm.engine, group):
                    pass
            answers.append([request.result().token_ids for group in requests for request in group])
        if not stopped:
            assert len(runs) > 50
            runs.clear()
    assert answers[0] == answers[1]
    assert not runs
    assert len(set(answers[0])) == len(params), "one answer of each, whatever is beside it"


def test_what_is_banned_later_is_not_drawn(gguf: Path, runs: list[int]) -> None:
    with LLM.load(gguf, device="cpu") as llm:
        first = llm.generate(sample_ids(5), GREEDY).token_ids
        vocab_size = llm.model.config.vocab_size
        llm.engine.sampler = Sampler(vocab_size, vocab_size, set(first), torch.device("cpu"))
        runs.clear()
        second = llm.generate(sample_ids(5), GREEDY).token_ids
        assert len(second) == len(first)
        assert not set(second) & set(first)
        assert runs, "it is recorded anew and replayed"


def test_a_reset_keeps_recordings_right(gguf: Path, runs: list[int]) -> None:
    """Blocks are given out anew, in another order than the recorded one."""
    prompts = [sample_ids(40, seed=1), sample_ids(7, seed=2)]
    with LLM.load(gguf, device="cpu") as llm:
        first = [answer.token_ids for answer in llm.generate(prompts, GREEDY)]
        llm.reset()
        runs.clear()
        assert [answer.token_ids for answer in llm.generate(prompts[::-1], GREEDY)] == first[::-1]
        assert len(runs) == GREEDY.max_tokens - 1


class Computes(LlamaForCausalLM):
    """Computes with torch between the ops."""

    def hidden(self, batch: Any, cache: Any) -> Tensor:
        return super().hidden(batch, cache) * 1.0


class Reads(LlamaForCausalLM):
    """Does what depends on a number of the batch."""

    def hidden(self, batch: Any, cache: Any) -> Tensor:
        assert batch.max_seq_len > 0
        return super().hidden(batch, cache)


class Names(LlamaForCausalLM):
    """Does what depends on who asks."""

    def hidden(self, batch: Any, cache: Any) -> Tensor:
        assert batch.request_ids
        return super().hidden(batch, cache)


class WritesInPlace(LlamaForCausalLM):
    """Changes a tensor under the recording."""

    def hidden(self, batch: Any, cache: Any) -> Tensor:
        return super().hidden(batch, cache).mul_(1.0)


class TakesValues(LlamaForCausalLM):
    """Does what depends on a value in a tensor."""

    def hidden(self, batch: Any, cache: Any) -> Tensor:
        assert int(batch.seq_lens[0]) > 0
        return super().hidden(batch, cache)


BREAKS = {Computes: "mul", Reads: "max_seq_len", Names: "request_ids", WritesInPlace: "mul_", TakesValues: "computes"}


@pytest.mark.parametrize("kind", BREAKS, ids=lambda kind: kind.__name__)
def test_a_model_that_breaks_the_contract_runs_op_by_op_and_says_so_once(
    kind: type, gguf: Path, runs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    ids = sample_ids(9)
    wanted = eager(gguf, ids)
    with LLM.load(gguf, device="cpu", plugins=[Become(kind)]) as llm:
        assert list(llm.generate(ids, GREEDY).token_ids) == wanted
        assert [list(one.token_ids) for one in llm.generate([ids, ids], GREEDY)] == [wanted, wanted]
    assert not runs
    (said,) = warnings_of(caplog)
    assert kind.__name__ in said
    assert "op by op" in said
    assert BREAKS[kind] in said


class Branches(LlamaForCausalLM):
    """Calls other ops for many tokens."""

    def hidden(self, batch: Any, cache: Any) -> Tensor:
        found = super().hidden(batch, cache)
        return kernels.add(found, found) if len(batch.positions) > 100 else found


class Shares(LlamaForCausalLM):
    """Looks at how the tokens are divided."""

    def hidden(self, batch: Any, cache: Any) -> Tensor:
        assert len(batch.query_lens) == len(batch.seq_lens)
        return super().hidden(batch, cache)


class Drops(LlamaForCausalLM):
    """Gives the states of fewer tokens than it was given."""

    def hidden(self, batch: Any, cache: Any) -> Tensor:
        found = super().hidden(batch, cache)
        return found[1:] if len(found) > 400 else found


@pytest.mark.parametrize(
    ("kind", "reason"), [(Branches, "other ops"), (Shares, "query_lens"), (Drops, "no row for each token")]
)
def test_a_model_whose_ops_depend_on_the_number_of_tokens_computes_prompts_op_by_op(
    kind: type,
    reason: str,
    gguf: Path,
    runs: list[int],
    prompts: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "zoo")
    ids = sample_ids(120)
    with LLM.load(gguf, device="cpu", plugins=[Become(kind)]) as llm:
        first = llm.generate(ids, GREEDY).token_ids
        llm.reset()
        assert llm.generate(ids, GREEDY).token_ids == first
        llm.reset()
        replay_of(llm).stopped = "the test wants it"
        assert llm.generate(ids, GREEDY).token_ids == first
    assert not prompts
    assert len(runs) == 2 * GREEDY.max_tokens - 3, "answers are replayed all the same"
    assert not warnings_of(caplog)
    (said,) = [record.getMessage() for record in caplog.records if "prompts" in record.getMessage()]
    assert kind.__name__ in said
    assert reason in said


class Scales(LlamaForCausalLM):
    """Computes with torch what comes after the layers."""

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) * 0.5


def test_layers_are_replayed_where_logits_cannot_be(
    gguf: Path, runs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    ids = sample_ids(9)
    with LLM.load(gguf, device="cpu") as llm:
        wanted = llm.generate(ids, GREEDY).token_ids
        whole = runs[0]
    runs.clear()
    with LLM.load(gguf, device="cpu", plugins=[Become(Scales)]) as llm:
        assert llm.generate(ids, GREEDY).token_ids == wanted
    assert set(runs) == {whole - 2}, "all but the product with the vocabulary and the draw"
    assert len(runs) == GREEDY.max_tokens - 2
    assert not warnings_of(caplog)


def test_a_method_that_is_set_on_the_model_is_called(gguf: Path, runs: list[int]) -> None:
    ids = sample_ids(9)
    with LLM.load(gguf, device="cpu") as llm:
        wanted = llm.generate(ids, GREEDY).token_ids
        logits = llm.model.logits
        llm.model.logits = lambda hidden: -logits(hidden)  # type: ignore[method-assign]
        other = llm.generate(ids, GREEDY).token_ids
        replay_of(llm).stopped = "the test wants it"
        assert llm.generate(ids, GREEDY).token_ids == other
        replay_of(llm).stopped = ""
        del llm.model.logits
        assert llm.generate(ids, GREEDY).token_ids == wanted
    assert other != wanted


class Doubled(nn.Module):
    """Stands in the place of a layer of the model."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return kernels.add(y, y)


def no_mlp(model: Any) -> None:
    """Sets a weight."""
    layer = model.model.layers[1].mlp.down_proj
    layer.set_weight("weight", torch.zeros(layer.out_features, layer.in_features))


def shift(model: Any) -> None:
    """Sets a bias."""
    layer = model.model.layers[0].self_attn.o_proj
    layer.bias = torch.linspace(-9, 9, layer.out_features)


def flatten(model: Any) -> None:
    """Sets a number."""
    model.model.layers[0].input_layernorm.eps = 100.0


def replace_layer(model: Any) -> None:
    """Sets a module."""
    model.model.layers[1].mlp = Doubled(model.model.layers[1].mlp)


def set_method(model: Any) -> None:
    """Sets a function on the model."""
    hidden = type(model).hidden
    weight = torch.linspace(-3, 3, model.config.hidden_size)
    model.hidden = lambda batch, cache: kernels.rms_norm(hidden(model, batch, cache), weight, eps=1e-5)[0]


CHANGES: list[Callable[[Any], None]] = [no_mlp, shift, flatten, replace_layer, set_method]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_set_on_a_model_later_is_computed_with(
    gguf: Path, runs: list[int], prompts: list[tuple[int, ...]], change: Callable[[Any], None]
) -> None:
    ids = sample_ids(30)
    with LLM.load(gguf, device="cpu") as llm:
        before = llm.logits(ids), llm.generate(ids, GREEDY).token_ids
        change(llm.model)
        llm.reset()
        runs.clear(), prompts.clear()
        after = llm.logits(ids), llm.generate(ids, GREEDY).token_ids
        assert prompts
        assert runs
        llm.reset()
        replay_of(llm).stopped = "the test wants it"
        assert torch.equal(llm.logits(ids), after[0])
        assert llm.generate(ids, GREEDY).token_ids == after[1]
    assert not torch.equal(before[0], after[0])
    assert before[1] != after[1]


def test_another_model_leaves_recordings_alone(gguf: Path, runs: list[int]) -> None:
    with LLM.load(gguf, device="cpu") as llm:
        wanted = llm.generate(sample_ids(9), GREEDY).token_ids
        runs.clear()
        with LLM.load(gguf, device="cpu"):
            assert llm.generate(sample_ids(9), GREEDY).token_ids == wanted
        assert len(runs) == GREEDY.max_tokens - 1


def test_an_error_while_recording_leaves_nothing_recorded(gguf: Path, runs: list[int]) -> None:
    failing = [True]

    class Fails(LlamaForCausalLM):
        def hidden(self, batch: Any, cache: Any) -> Tensor:
            found = super().hidden(batch, cache)
            if batch.max_query_len == 1 and failing:
                failing.clear()
                raise MemoryError("in the middle of a step")
            return found

    ids = sample_ids(9)
    with LLM.load(gguf, device="cpu", plugins=[Become(Fails)]) as llm:
        with pytest.raises(MemoryError):
            llm.generate(ids, GREEDY)
        llm.reset()
        assert list(llm.generate(ids, GREEDY).token_ids) == eager(gguf, ids)
    assert len(runs) == GREEDY.max_tokens - 2, "the first decode step records, the others replay"


@pytest.mark.parametrize("which", ["model.layers.1.mlp", "", "every module"])
def test_a_torch_hook_sees_every_call_while_it_is_there(
    which: str, gguf: Path, runs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    ids, calls = sample_ids(9), []

    def hook(module: Any, inputs: Any, *_: Any) -> None:
        calls.append(type(module).__name__)

    with LLM.load(gguf, device="cpu") as llm:
        wanted = llm.generate(ids, GREEDY).token_ids
        assert len(runs) == GREEDY.max_tokens - 2
        runs.clear()
        if which == "every module":
            handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
        else:
            # A hook of the outer module runs on none of its own methods, but whoever put it there must not be fooled.
            handle = llm.model.get_submodule(which).register_forward_hook(hook)  # type: ignore[attr-defined]
        assert llm.generate(ids, GREEDY).token_ids == wanted
        assert not runs
        if which:
            assert calls.count("MLP") == GREEDY.max_tokens * (3 if which == "every module" else 1)
        handle.remove()
        calls.clear()
        assert llm.generate(ids, GREEDY).token_ids == wanted
        assert len(runs) == GREEDY.max_tokens - 1
        assert not calls
    assert len([text for text in warnings_of(caplog) if "hook" in text]) == 1


def test_a_hook_that_changes_values_changes_the_answer(gguf: Path) -> None:
    """Steering a module after its steps were recorded has an effect, and none after it has ended."""
    ids = sample_ids(9)
    with LLM.load(gguf, device="cpu") as llm:
        plain = llm.generate(ids, GREEDY).token_ids
        module = llm.model.get_submodule("model.layers.2.mlp")  # type: ignore[attr-defined]
        handle = module.register_forward_hook(lambda module, inputs, output: output * -3)
        assert llm.generate(ids, GREEDY).token_ids != plain
        handle.remove()
        llm.reset()
        assert llm.generate(ids, GREEDY).token_ids == plain


def test_a_wrapper_that_changes_the_batch_gets_what_it_asks_for(gguf: Path, runs: list[int]) -> None:
    class Replace:
        """Runs each step on another token than the one that was sampled."""

        @hookimpl(wrapper=True)
        def forward(self, model: Any, batch: Any, cache: Any) -> Any:
            yield
            other = dataclasses.replace(batch, input_ids=(batch.input_ids + 1) % 300)
            return model.logits(model.hidden(other, cache)[other.logits_indices])

    answers = []
    for stopped in ("", "the test wants it"):
        with LLM.load(gguf, device="cpu", plugins=[Replace()]) as llm:
            replay_of(llm).stopped = stopped
            answers.append(llm.generate(sample_ids(9), GREEDY).token_ids)
    assert answers[0] == answers[1]
    assert list(answers[0]) != eager(gguf, sample_ids(9))
    assert len(runs) == GREEDY.max_tokens - 2, "the owner's own call of each step is replayed"


def test_hidden_states_that_a_wrapper_keeps_stay_as_they_were(gguf: Path) -> None:
    kept: list[tuple[Tensor, Tensor]] = []

    class Keep:
        @hookimpl(wrapper=True)
        def forward(self, model: Any, batch: Any, cache: Any) -> Any:
            states = model.hidden(batch, cache)
            kept.append((states, states.clone()))
            return (yield)

    with LLM.load(gguf, device="cpu", plugins=[Keep()]) as llm:
        llm.generate(sample_ids(9), GREEDY)
    assert len(kept) == GREEDY.max_tokens
    assert all(torch.equal(states, copy) for states, copy in kept)
    assert not torch.equal(kept[-1][1], kept[-2][1])


def test_what_is_set_on_the_model_later_reaches_the_hook(gguf: Path) -> None:
    seen = []

    class Look:
        @hookimpl(wrapper=True)
        def forward(self, model: Any) -> Any:
            seen.append(getattr(model, "label", None))
            return (yield)

    with LLM.load(gguf, device="cpu", plugins=[Look()]) as llm:
        llm.generate(sample_ids(9), GREEDY)
        llm.model.label = "mine"  # type: ignore[attr-defined]
        llm.generate(sample_ids(9), GREEDY)
    assert set(seen[: GREEDY.max_tokens]) == {None}
    assert set(seen[GREEDY.max_tokens :]) == {"mine"}


def test_models_of_different_threads_live_side_by_side(gguf: Path, runs: list[int]) -> None:
    ids = sample_ids(9)
    outer = torch.get_num_threads()
    try:
        wanted = eager(gguf, ids)
        with LLM.load(gguf, device="cpu", threads=1) as one, LLM.load(gguf, device="cpu", threads=3) as three:
            assert [replay_of(llm).pool.threads for llm in (one, three)] == [1, 3]
            streams = [llm.stream(ids, GREEDY) for llm in (one, three)]
            answers: list[Any] = [None, None]
            while None in answers:
                for index, stream in enumerate(streams):
                    if answers[index] is None:
                        try:
                            next(stream)
                        except StopIteration as end:
                            answers[index] = list(end.value.token_ids)
            assert answers == [wanted, wanted]
            assert len(runs) == 2 * (GREEDY.max_tokens - 2)
            assert torch.get_num_threads() == 3, "torch's own threads are given back after each step"
    finally:
        torch.set_num_threads(outer)


def test_threads_by_default_are_the_physical_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(pools, "_siblings", lambda processor: f"{processor // 2 * 2}-{processor // 2 * 2 + 1}")
    monkeypatch.setattr(pools, "_granted", lambda: 1 << 16)
    assert Pool().threads == 2
    monkeypatch.setattr(pools, "_granted", lambda: 1)
    assert Pool().threads == 1
    assert Pool(5).threads == 5


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena()
    yield arena
    gc.collect()


def lent(arena: Arena, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, int]:
    tensor = arena.empty(shape, dtype)
    assert tensor.shape == shape
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    return tensor, tensor.data_ptr()


def test_the_arena_hands_memory_on(arena: Arena) -> None:
    first, where = lent(arena, (3, 50))
    assert where % 64 == 0
    second, other = lent(arena, (3, 50))
    assert abs(where - other) >= 600, "both are alive"
    first.fill_(1)
    second.fill_(2)
    assert first.eq(1).all()
    view = first[1:]
    del first
    assert lent(arena, (3, 50))[1] not in (where, other), "a view still lies there"
    del view
    third, place = lent(arena, (150,))
    assert place == where
    fourth, place = lent(arena, (9, 16), torch.float32)
    assert place not in (where, other)
    del third
    assert lent(arena, (4, 36))[1] == where, "sizes that are nearly equal share buffers"
    del fourth
    assert lent(arena, ())[0].numel() == 1
    assert lent(arena, (0, 8))[0].numel() == 0


def buffers(replay: Replay) -> int:
    """Bytes that recordings hold. All buffers are free between two steps."""
    return sum(nbytes * len(found) for nbytes, found in replay._arena._free.items())


def test_memory_of_recordings_is_bounded(gguf: Path) -> None:
    """Recording every batch size takes a few times what the largest takes alone, not the sum of all."""
    prompts = [sample_ids(2, seed=index) for index in range(24)]
    sizes = {}
    for name, counts in (("largest", (24,)), ("all", range(1, 25))):
        with LLM.load(gguf, device="cpu") as llm:
            for count in counts:
                llm.generate(prompts[:count], SamplingParams(max_tokens=3, temperature=0, ignore_eos=True))
            replay = replay_of(llm)
            assert sorted(size for size, _ in replay._steps) == list(counts)
            sizes[name] = buffers(replay)
    assert 0 < sizes["largest"] < sizes["all"] < 5 * sizes["largest"]


def test_a_recording_keeps_what_its_addresses_point_to() -> None:
    recorder, owner = Recorder(Arena()), torch.zeros(3)
    alive = weakref.ref(owner)
    recorder.add(ctypes.c_int(0), (owner,))  # type: ignore[arg-type]
    program = Program(recorder.ops, recorder.kept, torch.empty(0))
    del recorder, owner
    assert alive() is not None
    del program
    assert alive() is None


def test_closing_gives_recordings_back(gguf: Path) -> None:
    with LLM.load(gguf, device="cpu") as llm:
        llm.generate(sample_ids(9), GREEDY)
        replay = weakref.ref(replay_of(llm))
        pool = weakref.ref(replay_of(llm).pool)
    gc.collect()
    assert replay() is None
    assert pool() is None
