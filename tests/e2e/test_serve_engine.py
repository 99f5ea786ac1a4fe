"""Many requests at once: each gets what it would get alone, failures stay apart, and nothing is lost or left."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import torch

from e2e.served import Served, serving, wait_for
from oracle.checkpoints import sample_ids, save_checkpoint
from oracle.mistral_checkpoints import mistral_config
from zoo import LLM, SamplingParams
from zoo.server.app import ServerOptions

MARGIN = 1e-3


@pytest.fixture(scope="module")
def served(tiny: Any) -> Iterator[Served]:
    with serving(lambda: LLM.load(tiny.path, dtype="float32", cache_dtype="float32")) as server:
        yield server


@pytest.fixture(scope="module")
def llm(tiny: Any) -> Iterator[LLM]:
    with LLM.load(tiny.path, dtype="float32", cache_dtype="float32") as model:
        yield model


@pytest.fixture(autouse=True)
def nothing_is_left(served: Served) -> Iterator[None]:
    before = served.free_blocks()
    yield
    served.settle()
    assert served.free_blocks() == before


def complete(served: Served, ids: list[int], count: int, **more: Any) -> Any:
    body = {"prompt": ids, "max_tokens": count, "temperature": 0, "logprobs": 2, "ignore_eos": True, **more}
    answer = served.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def certain(llm: LLM, ids: list[int], count: int) -> list[str]:
    """Greedy tokens of a prompt alone, up to the first whose lead over the second is too small to be sure of."""
    result = llm.generate(ids, SamplingParams(temperature=0, max_tokens=count, logprobs=2, ignore_eos=True))
    out = []
    for token in result.logprobs or ():
        (_, first), (_, second) = token.top
        if first - second < MARGIN:
            break
        out.append(llm.tokenizer.piece(token.token_id).decode("utf-8", "replace"))
    return out


def test_32_greedy_requests_at_once_are_each_what_they_are_alone(served: Served, llm: LLM) -> None:
    prompts = [sample_ids(3 + 7 * index % 120, seed=index) for index in range(32)]
    alone = [certain(llm, ids, 16) for ids in prompts]
    assert sum(map(len, alone)) > 400
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda ids: complete(served, ids, 16), prompts))
    for sure, choice in zip(alone, together, strict=True):
        assert choice["logprobs"]["tokens"][: len(sure)] == sure


def test_a_seed_gives_the_same_text_whatever_runs_beside_it(served: Served) -> None:
    options: Any = {"temperature": 1.0, "seed": 11}
    alone = complete(served, sample_ids(9), 20, **options)["text"]
    with ThreadPoolExecutor(16) as pool:
        others = [pool.submit(complete, served, sample_ids(20, seed=n), 20, temperature=1.0, seed=n) for n in range(15)]
        beside = complete(served, sample_ids(9), 20, **options)["text"]
        [other.result() for other in others]
    assert beside == alone


def test_the_cache_runs_out_and_nothing_is_lost(tiny: Any, llm: LLM) -> None:
    """Blocks for two long sequences, and six of them: preempted ones are computed again."""
    with serving(lambda: LLM.load(tiny.path, dtype="float32", cache_dtype="float32")) as small:
        for manager in small.llm.engine.scheduler.managers:
            del manager._free[: len(manager._free) - 8]
        prompts = [sample_ids(60, seed=100 + index) for index in range(6)]
        alone = [certain(llm, ids, 60) for ids in prompts]
        preempted = []
        scheduler = small.llm.engine.scheduler
        preempt = scheduler._preempt
        scheduler._preempt = lambda one: (preempted.append(one), preempt(one))[1]  # type: ignore[method-assign]
        with ThreadPoolExecutor(6) as pool:
            with small.held():
                answers = [pool.submit(complete, small, ids, 60) for ids in prompts]
                wait_for(lambda: small.service.worker.pending == 6, "all requests are there")
            together = [answer.result() for answer in answers]
        assert preempted
        for sure, other in zip(alone, together, strict=True):
            assert other["logprobs"]["tokens"][: len(sure)] == sure
            assert len(other["logprobs"]["tokens"]) == 60
        small.settle()
        assert small.free_blocks() == [8]


@pytest.mark.parametrize("variant", ["7B v0.1", "Ministral 8B"])
def test_known_prefixes_are_right_with_sliding_windows(tmp_path: Path, variant: str) -> None:
    """Turns of a conversation by transformers, and by sequences that begin with known blocks past the window."""
    reference = save_checkpoint(tmp_path, mistral_config(variant))
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with LLM.load(tmp_path, dtype="float32", cache_dtype="float32") as llm:
        text, cached = sample_ids(70, seed=1), []
        for turn in range(4):
            result = llm.generate(text, greedy)
            wanted = reference.generate(
                torch.tensor([text]), do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0
            )
            assert list(result.token_ids) == wanted[0, len(text) :].tolist()
            cached.append(result.cached_tokens)
            text = [*text, *result.token_ids, *sample_ids(33, seed=turn)]
        assert cached[0] == 0
        assert all(count >= 64 for count in cached[1:])
        llm.reset()
        assert llm.generate(text, greedy).cached_tokens == 0


def test_one_failing_step_fails_its_sequences_and_the_server_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = served.llm.engine.runner
    replays = runner.replays  # what every step asks first
    steps = iter([False])  # whether the next step fails; afterwards none does

    def fail(*step: Any) -> Any:
        if next(steps, False):
            raise RuntimeError("a secret of the model")
        return replays(*step)

    monkeypatch.setattr(runner, "replays", fail)
    steps = iter([True])
    body = {"prompt": sample_ids(5), "max_tokens": 5}
    answer = served.post("/v1/completions", body)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    long = {**body, "stream": True, "max_tokens": 200, "ignore_eos": True}  # or it may end before the step
    steps = iter([False] * 5 + [True])
    with served.http() as http, http.stream("POST", "/v1/completions", json=long) as stream:
        rest = [line for line in stream.iter_lines() if line]
    assert len(rest) > 1
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert complete(served, sample_ids(5), 5)["finish_reason"] == "length"


def test_a_grammar_that_fails_fails_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.engine.grammar import Grammar
    from zoo.errors import UsageError

    def fail(self: Grammar) -> bytes:
        raise UsageError("the grammar failed")

    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(complete, served, sample_ids(8), 60)
        monkeypatch.setattr(Grammar, "mask", fail)
        answer = served.post("/v1/completions", {"prompt": "the", "grammar": 'start: "a"'})
        assert answer.status_code == 400
        assert "the grammar failed" in answer.text
        assert other.result()["finish_reason"] == "length"


def test_a_model_that_is_lost_says_so(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda: LLM.load(tiny.path)) as server:
        stopped = threading.Event()
        server.service.worker.on_lost = stopped.set
        engine = server.llm.engine

        def fail(*step: Any) -> Any:
            raise RuntimeError("the device is gone")

        monkeypatch.setattr(engine.runner, "logits", fail)
        monkeypatch.setattr(engine, "usable", lambda: False)
        answer = server.post("/v1/completions", {"prompt": "the"})
        assert answer.status_code == 503
        assert stopped.wait(60)
        assert "gone" in str(server.service.worker.failure)
        with server.http() as http:
            assert http.get("/health").json()["status"] == "failed"
        assert server.post("/v1/completions", {"prompt": "the"}).status_code == 503


def test_a_client_that_goes_stops_its_answer_within_a_step(served: Served) -> None:
    engine, worker = served.llm.engine, served.service.worker
    for stream in (True, False):
        body = {"prompt": sample_ids(6), "max_tokens": 240, "ignore_eos": True, "stream": stream}

        async def leave(waits: threading.Event, body: dict[str, Any] = body) -> None:
            async with httpx2.AsyncClient(base_url=served.url, timeout=300) as client:
                task = asyncio.ensure_future(client.post("/v1/completions", json=body))
                await asyncio.to_thread(waits.wait, 60)
                task.cancel()
                await asyncio.wait([task])

        with served.held(after=3) as waits:
            asyncio.run(leave(waits))
            (sequence,) = engine.scheduler.running
            written = len(sequence.output_token_ids)
            # How long the news takes through the sockets is not the engine's business.
            wait_for(served.news, "the server hears of it")
        served.settle()
        assert 0 < written <= len(sequence.output_token_ids) <= written + 1
        assert sequence.finish_reason == "abort"
        assert worker.pending == 0


def test_the_queue_is_bounded(tiny: Any) -> None:
    with serving(lambda: LLM.load(tiny.path), ServerOptions(max_queue=2)) as server:
        server.llm.engine.scheduler.max_num_seqs = 2
        body = {"prompt": sample_ids(6), "max_tokens": 240, "ignore_eos": True}
        assert server.post("/v1/completions", {**body, "n": 5}).status_code == 429
        with ThreadPoolExecutor(12) as pool:
            with server.held():
                asked = [pool.submit(server.post, "/v1/completions", body) for _ in range(12)]
                wait_for(lambda: sum(one.done() for one in asked) == 8, "eight are refused")
            answers = [one.result() for one in asked]
        codes = [answer.status_code for answer in answers]
        assert sorted(codes) == [200] * 4 + [429] * 8, "two run and two wait"
        (refused, *_) = [answer for answer in answers if answer.status_code == 429]
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.headers["retry-after"] == "1"


def test_200_requests_with_aborts_and_disconnects(served: Served) -> None:
    """None lost, none mixed up, memory flat. Every answer must be the one that its prompt has alone."""
    draw, process = random.Random(0), psutil.Process()
    prompts = [sample_ids(draw.randint(1, 120), seed=1000 + index) for index in range(12)]
    options: Any = {"temperature": 0, "logprobs": None}
    alone = {index: complete(served, ids, 40, **options)["text"] for index, ids in enumerate(prompts)}
    memory: list[int] = []
    wrong: list[str] = []

    async def one(client: httpx2.AsyncClient, gate: asyncio.Semaphore) -> str:
        which, count = draw.randrange(12), draw.randint(1, 40)
        kind = draw.choice(["whole", "stream", "stream", "leave", "bad"])
        body = {"prompt": prompts[which], "max_tokens": count, "ignore_eos": True, **options}
        async with gate:
            if kind == "bad":
                answer = await client.post("/v1/completions", json={**body, "temperature": -1})
                assert answer.status_code == 400
                return kind
            if kind == "whole":
                answer = await client.post("/v1/completions", json=body)
                text = answer.json()["choices"][0]["text"]
            else:
                text = ""
                async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
                    async for line in stream.aiter_lines():
                        if line.startswith("data: {"):
                            text += json.loads(line[6:])["choices"][0]["text"]
                        if kind == "leave" and len(text) > count // 2:
                            break
            # A character may be cut at the end of the shorter text.
            if not alone[which].startswith(text.rstrip("\ufffd")) or (kind != "leave" and not text):
                wrong.append(f"{kind} {which}: {text!r} is not the beginning of {alone[which]!r}")
        return kind

    async def all_of_them() -> list[str]:
        gate = asyncio.Semaphore(24)
        async with httpx2.AsyncClient(base_url=served.url, timeout=300) as client:
            kinds = []
            for count in (50, 150):
                kinds += await asyncio.gather(*(one(client, gate) for _ in range(count)))
                gc.collect()
                memory.append(process.memory_info().rss)
            return kinds

    kinds = asyncio.run(all_of_them())
    assert not wrong
    assert len(kinds) == 200
    assert {"whole", "stream", "leave", "bad"} == set(kinds)
    served.settle()
    assert not served.service.worker._live
    early, late = memory
    assert late < early * 1.05


def test_models_that_come_and_go_leave_no_memory(tiny: Any) -> None:
    process, sizes, kept = psutil.Process(), [], []
    for _ in range(6):
        with LLM.load(tiny.path) as llm:
            kept += [weakref.ref(llm.model), weakref.ref(llm.engine.runner.cache)]
            llm.generate(sample_ids(100), SamplingParams(max_tokens=20, ignore_eos=True))
            for _ in range(5):
                llm.reset()
                llm.generate(sample_ids(100), SamplingParams(max_tokens=2, ignore_eos=True))
        gc.collect()
        sizes.append(process.memory_info().rss)
    assert not any(reference() for reference in kept), "the closed LLM is still there; its model must not be"
    assert sizes[-1] < sizes[2] * 1.05


def test_servers_that_come_and_go_leave_nothing(tiny: Any) -> None:
    process, counts, kept, threads = psutil.Process(), [], [], threading.active_count()
    for _ in range(4):
        with serving(lambda: LLM.load(tiny.path)) as server:
            kept += [
                weakref.ref(server.llm),
                weakref.ref(server.llm.model),
                weakref.ref(server.llm.engine.runner.cache),
            ]
            complete(server, sample_ids(100), 20)
            stream = server.client().completions.create(model="x", prompt="the", max_tokens=100, stream=True)
            next(iter(stream))  # one answer is cut by the end of the server
        stream.close()
        del server, stream
        wait_for(lambda: threading.active_count() <= threads, "threads that were told to end have ended")
        gc.collect()
        counts.append((process.memory_info().rss, process.num_fds()))
    assert not any(reference() for reference in kept), "a server that has ended holds its model"
    assert counts[-1][0] < counts[1][0] * 1.03
    assert counts[-1][1] <= counts[1][1], counts
