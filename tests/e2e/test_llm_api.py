"""The Python API: what it answers is what transformers answers; what it refuses, it refuses in words."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import tokenizers
import torch

from oracle.checkpoints import VOCAB_SIZE, llama_config, sample_ids, save_checkpoint
from zoo import LLM, SamplingParams
from zoo.engine.result import Generation, Piece
from zoo.errors import CapacityError, ContextLengthError, DeviceError, SourceError, TemplateError, UsageError, ZooError

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
PROMPT = sample_ids(20)
MESSAGES = [{"role": "user", "content": "the theory"}]


@pytest.fixture(scope="module")
def llm(tiny: Any) -> Iterator[LLM]:
    with LLM.load(tiny.path) as model:
        yield model


def free_blocks(llm: LLM) -> list[int]:
    return [manager.num_free for manager in llm._engine.scheduler.managers]


def drain(stream: Generator[Piece, None, Generation]) -> tuple[list[str], Generation]:
    """The texts that are left in a stream, and what it returns."""
    texts = []
    while True:
        try:
            texts.append(next(stream).text)
        except StopIteration as end:
            return texts, end.value


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """By transformers, whatever ends a text left out."""
    out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0)
    return out[0, len(ids) :].tolist()


def test_greedy_answers_are_those_of_transformers(llm: LLM, tiny: Any) -> None:
    result = llm.generate(PROMPT, GREEDY)
    assert list(result.token_ids) == greedy(tiny.reference, PROMPT, 10)
    assert (result.prompt_tokens, result.completion_tokens, result.finish_reason) == (20, 10, "length")
    oracle = tokenizers.Tokenizer.from_file(str(tiny.path / "tokenizer.json"))
    assert result.text == oracle.decode(list(result.token_ids))
    assert result.timings.first_token_s > 0
    assert result.timings.decode_tok_s > 0
    assert result.logprobs is None


def test_a_list_is_one_batch_of_the_same_answers(llm: LLM, tiny: Any) -> None:
    prompts = [sample_ids(length, seed=length) for length in (3, 40, 17)]
    results = llm.generate(prompts, GREEDY)
    assert [list(result.token_ids) for result in results] == [greedy(tiny.reference, ids, 10) for ids in prompts]
    assert len(llm.generate(["the", "word"], GREEDY)) == 2


def test_a_text_is_its_token_ids(llm: LLM) -> None:
    assert (
        llm.generate("the theory", GREEDY).token_ids
        == llm.generate(llm.tokenizer.encode("the theory"), GREEDY).token_ids
    )


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple], ids=["numpy", "torch", "tuple"])
def test_ids_of_any_integer_kind(llm: LLM, kind: Callable[[list[int]], Any]) -> None:
    assert llm.generate(kind(PROMPT), GREEDY).token_ids == llm.generate(PROMPT, GREEDY).token_ids


def test_streamed_pieces_are_the_answer(llm: LLM) -> None:
    pieces, result = drain(llm.stream(PROMPT, GREEDY))
    assert len(pieces) > 1
    assert "".join(pieces) == result.text == llm.generate(PROMPT, GREEDY).text


def test_chat_is_the_template_continued(llm: LLM) -> None:
    text = "".join(part for part, _ in llm.render(MESSAGES))
    assert text == "user: the theory<|im_end|>\nassistant: "
    ids = llm.tokenizer.encode(text, add_special=False, parse_special=True)
    answer = llm.chat(MESSAGES, GREEDY)
    assert answer.prompt_tokens == len(ids)
    assert answer.token_ids == llm.generate(ids, GREEDY).token_ids
    assert "".join(piece.text for piece in llm.stream(MESSAGES, GREEDY)) == answer.text


def test_chat_without_a_template_is_refused(plain: Path) -> None:
    with LLM.load(plain) as model:
        assert not model.has_chat_template
        with pytest.raises(TemplateError, match="no chat template"):
            model.chat(MESSAGES)


def test_logits_hidden_states_and_scores_are_those_of_transformers(llm: LLM, tiny: Any) -> None:
    with torch.no_grad():
        wanted = tiny.reference(torch.tensor([PROMPT]), output_hidden_states=True)
    torch.testing.assert_close(llm.logits(PROMPT), wanted.logits[0], rtol=0, atol=1e-4)
    for ours, theirs in zip(llm.hidden_states(PROMPT, [0, 1, 2, 3]), wanted.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs[0], rtol=0, atol=1e-4)
    text = "the theory of the then"
    ids = llm.tokenizer.encode(text)
    with torch.no_grad():
        rows = tiny.reference(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    wanted_scores = rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    torch.testing.assert_close(torch.tensor(llm.score(text)), wanted_scores, rtol=0, atol=1e-4)


def test_reading_the_model_keeps_no_blocks(llm: LLM) -> None:
    before = free_blocks(llm)
    llm.logits(PROMPT), llm.hidden_states(PROMPT, [1]), llm.score("the theory"), llm.generate(PROMPT, GREEDY)
    assert free_blocks(llm) == before


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m: m.generate([]), "no prompt"),
        (lambda m: m.generate(""), "prompt is empty"),
        (lambda m: m.generate(["the", ""]), "prompt is empty"),
        (lambda m: m.generate([PROMPT, []]), "prompt is empty"),
        (lambda m: m.generate([1, "the"]), r"not \(1, 'the'\)|not \[1, 'the'\]"),
        (lambda m: m.generate(["the", 1]), "not 1"),
        (lambda m: m.generate([0.5]), "not 0.5"),
        (lambda m: m.generate(None), "a prompt is a text, token ids, or a list of them, not None"),
        (lambda m: m.generate(b"the"), r"not b'the'; decode bytes"),
        (lambda m: m.generate({"role": "user", "content": "x"}), r"not \{'content'.*ask a conversation with chat"),
        (lambda m: m.generate([VOCAB_SIZE]), f"token id {VOCAB_SIZE} does not exist; ids are 0 to {VOCAB_SIZE - 1}"),
        (lambda m: m.logits([-1]), "token id -1"),
        (lambda m: m.logits([]), "prompt is empty"),
        (lambda m: m.stream(""), "prompt is empty"),  # at the call, not at the first piece
        (lambda m: m.hidden_states(PROMPT, [4]), "layer 4 does not exist; use 0 to 3"),
        (lambda m: m.hidden_states(PROMPT, [-1]), "layer -1"),
        (lambda m: m.score("t"), "fewer than two"),
        (lambda m: m.generate(PROMPT, SamplingParams(temperature=-1)), "temperature is -1"),
        (lambda m: m.generate(PROMPT, SamplingParams(stop=("",))), "stop holds"),
        (lambda m: m.generate(PROMPT, SamplingParams(seed=-1)), "seed is -1"),
    ],
)
def test_bad_arguments(llm: LLM, ask: Callable[[LLM], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ask(llm)


def test_a_prompt_beyond_the_context_says_both_lengths(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match="300 tokens, the context 256") as caught:
        llm.generate([5] * 300)
    assert (caught.value.tokens, caught.value.context) == (300, 256)
    assert caught.value.remedy == "shorten the prompt", "the model was made for no larger context"
    assert len(llm.logits([5] * 256)) == 256  # reading needs no room for an answer
    with pytest.raises(ContextLengthError):
        llm.generate([5] * 256)


def test_a_larger_context_is_named_where_there_is_one(tiny: Any) -> None:
    with LLM.load(tiny.path, context=64) as model, pytest.raises(ContextLengthError) as caught:
        model.generate([5] * 65)
    assert caught.value.remedy == "shorten the prompt or load with a larger --context"


def test_an_answer_ends_with_the_context(llm: LLM) -> None:
    result = llm.generate([5] * 250, SamplingParams(temperature=0, ignore_eos=True, max_tokens=100))
    assert (result.completion_tokens, result.finish_reason) == (6, "length")


def test_a_stream_closed_early_frees_its_blocks(llm: LLM) -> None:
    before = free_blocks(llm)
    stream = llm.stream(PROMPT, GREEDY)
    next(stream)
    assert free_blocks(llm) != before
    stream.close()
    assert free_blocks(llm) == before
    dropped = llm.stream(PROMPT, GREEDY)
    next(dropped)
    del dropped
    gc.collect()
    assert free_blocks(llm) == before
    assert not llm._engine.scheduler.has_work


def test_two_streams_in_turns_give_what_each_gives_alone(llm: LLM) -> None:
    other, stop = sample_ids(7, seed=1), SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    alone = [llm.generate(ids, params).text for ids, params in ((PROMPT, GREEDY), (other, stop))]
    first, second = llm.stream(PROMPT, GREEDY), llm.stream(other, stop)
    texts = [next(first).text, "".join(piece.text for piece in second)]
    texts[0] += "".join(piece.text for piece in first)
    assert texts == alone


def test_a_stop_string_found_late_still_ends_the_answer(llm: LLM) -> None:
    """The second stream drives the engine past the stop string of the first before the first is read."""
    full = llm.generate(PROMPT, GREEDY).text
    stop = full[len(full) // 2 :][:2]
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, stop=stop)
    alone = llm.generate(PROMPT, params)
    assert alone.finish_reason == "stop"
    assert alone.text == full[: full.index(stop)]
    first = llm.stream(PROMPT, params)
    begun = next(first).text
    llm.generate(sample_ids(5, seed=3), SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    pieces, late = drain(first)
    assert (begun + "".join(pieces), late.token_ids, late.finish_reason) == (alone.text, alone.token_ids, "stop")


def test_reset_ends_what_runs(llm: LLM) -> None:
    before = free_blocks(llm)
    stream = llm.stream(PROMPT, GREEDY)
    next(stream)
    llm.reset()
    assert free_blocks(llm) == before
    assert drain(stream)[1].finish_reason == "abort"
    assert llm.generate(PROMPT, GREEDY).finish_reason == "length"


def test_same_seed_same_text(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=7, max_tokens=12, ignore_eos=True)
    alone = llm.generate(PROMPT, params)
    batch = llm.generate([sample_ids(9, seed=4), PROMPT], params)
    assert batch[1].token_ids == alone.token_ids
    other = SamplingParams(temperature=1.0, seed=8, max_tokens=12, ignore_eos=True)
    assert llm.generate(PROMPT, other).token_ids != alone.token_ids


def test_two_models_side_by_side(llm: LLM, tiny: Any, tmp_path: Path) -> None:
    reference = save_checkpoint(tmp_path, llama_config(num_hidden_layers=2), seed=1)
    with LLM.load(tmp_path) as other:
        mixed = llm.generate(PROMPT, GREEDY), other.generate(PROMPT, GREEDY), llm.generate(PROMPT, GREEDY)
    assert list(mixed[0].token_ids) == list(mixed[2].token_ids) == greedy(tiny.reference, PROMPT, 10)
    assert list(mixed[1].token_ids) == greedy(reference, PROMPT, 10)


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: m.generate(PROMPT),
        lambda m: m.generate("the"),
        lambda m: m.stream(PROMPT),
        lambda m: m.chat(MESSAGES),
        lambda m: m.logits(PROMPT),
        lambda m: m.hidden_states(PROMPT, [0]),
        lambda m: m.score("the theory"),
        lambda m: m.reset(),
    ],
)
def test_use_after_close(tiny: Any, ask: Callable[[LLM], object]) -> None:
    model = LLM.load(tiny.path, context=64)
    model.close()
    model.close()
    with pytest.raises(UsageError, match=r"is closed; load it again"):
        ask(model)


def test_a_stream_ends_when_its_model_is_closed(tiny: Any) -> None:
    with LLM.load(tiny.path, context=64) as model:
        stream = model.stream(PROMPT, GREEDY)
        next(stream)
    assert drain(stream)[1].finish_reason == "abort"


def test_load_options(tiny: Any) -> None:
    threads = torch.get_num_threads()
    try:
        with LLM.load(tiny.path, context=64, threads=1, cache_dtype="bfloat16", dtype="float32", device="cpu") as model:
            assert torch.get_num_threads() == 1
            assert (model.context, model.info.context, model.info.device, model.info.dtype) == (
                64,
                64,
                "cpu",
                "float32",
            )
            assert model.notes == ["context 64 tokens, as asked (--context changes it)"]
            rough = model.logits(PROMPT)
    finally:
        torch.set_num_threads(threads)
    with LLM.load(str(tiny.path)) as model:
        assert "what the model was made for" in model.notes[0]
        difference = (model.logits(PROMPT) - rough).abs().max()
    assert 1e-4 < difference < 1.0  # the cache was bfloat16, and it was the same model


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "tpu"}, UsageError, "device 'tpu' is unknown"),
        ({"device": "cuda:99"}, DeviceError, "CUDA|cuda"),
        ({"dtype": "int8"}, UsageError, "dtype 'int8'"),
        ({"cache_dtype": "int3"}, UsageError, "int3"),
        ({"context": 0}, UsageError, "context is 0"),
        ({"context": 1000}, ContextLengthError, "1000 tokens is asked for, the model was made for 256"),
        ({"threads": 0}, UsageError, "threads is 0"),
        ({"plugin": "nobody"}, ZooError, "there is no plugin 'nobody'"),
        ({"overrides": {"num_hidden_layers": "many"}}, ZooError, "num_hidden_layers"),
    ],
)
def test_bad_load_options(tiny: Any, options: dict[str, Any], error: type[ZooError], words: str) -> None:
    with pytest.raises(error, match=words):
        LLM.load(tiny.path, **options)


def test_an_unknown_path() -> None:
    with pytest.raises(SourceError, match="does not exist"):
        LLM.load("./no-such-model")


def test_overrides_change_the_model(tiny: Any) -> None:
    with LLM.load(tiny.path, overrides={"max_position_embeddings": 64}) as model:
        assert model.context == 64
        assert not any("is added" in note for note in model.notes)


def test_a_key_that_was_not_there_is_said(tiny: Any) -> None:
    with LLM.load(tiny.path, overrides={"max_postion_embeddings": 64}) as model:
        assert model.context == 256
        assert "max_postion_embeddings is added: config.json has no such key" in model.notes


def memory(total: int, available: int) -> Callable[[], Any]:
    return lambda: SimpleNamespace(total=total, available=available)


def test_weights_larger_than_memory_run_with_a_warning(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", memory(400_000, 300_000))
    with LLM.load(tiny.path) as model:
        assert "larger than memory" in model.notes[0]
        assert "s each" in model.notes[0]
        assert "what free memory holds" in model.notes[1]
        assert 32 <= model.context < 256
        assert model.generate([5] * 8, GREEDY).completion_tokens == 10


def test_no_memory_for_a_context(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", memory(400_000, 500))
    with pytest.raises(CapacityError, match="no memory is left"):
        LLM.load(tiny.path)
    with pytest.raises(CapacityError, match="a context of 64 tokens needs"):
        LLM.load(tiny.path, context=64)
