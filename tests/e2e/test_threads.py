"""Models with different numbers of threads in one process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from kernels.native_cases import needs_native
from oracle.checkpoints import sample_ids
from zoo import LLM, SamplingParams

pytestmark = needs_native

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = [sample_ids(length, seed=length) for length in (3, 20, 70)]

# The main thread leaves while a daemon thread is in the middle of a step, in calls of torch that ask for Python again.
EXIT = """
import sys, threading, time
import torch
from zoo import LLM, SamplingParams
from zoo.engine.runner import Runner
model = LLM.load(sys.argv[1], threads=2, context=200)
inside, forward = threading.Event(), Runner.forward
def long(self, batch):
    inside.set()
    end = time.monotonic() + 1
    while time.monotonic() < end:
        torch.ones(4)[torch.tensor([1])].sum().item()
    return forward(self, batch)
Runner.forward = long
forever = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
def work():
    while True:
        model.generate([1, 2, 3], forever)
threading.Thread(target=work, daemon=True).start()
inside.wait()
print("leaving")
"""


def answers(model: LLM) -> list[tuple[int, ...]]:
    return [tuple(model.generate(prompt, GREEDY).token_ids) for prompt in PROMPTS]


@pytest.fixture
def threads_of_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("threads_of_torch")
def test_models_with_different_threads_answer_as_each_does_alone(tiny: Any) -> None:
    with LLM.load(tiny.path, threads=1) as model:
        alone, logits = answers(model), model.logits(PROMPTS[1])
    with LLM.load(tiny.path, threads=1) as one, LLM.load(tiny.path, threads=2) as two:
        for prompt, expected in zip(PROMPTS, alone, strict=True):
            for model in (one, two, one):
                assert tuple(model.generate(prompt, GREEDY).token_ids) == expected
        # A token at a time in turns, each in the middle of its answer.
        streams = [model.stream(PROMPTS[1], GREEDY) for model in (one, two)]
        texts = ["", ""]
        for pieces in zip(*streams, strict=True):
            for i, piece in enumerate(pieces):
                texts[i] += piece.text
        assert texts[0] == texts[1] == one.generate(PROMPTS[1], GREEDY).text
        for model in (one, two):
            assert torch.equal(model.logits(PROMPTS[1]), logits)


@pytest.mark.usefixtures("threads_of_torch")
def test_models_with_different_threads_answer_at_the_same_time(tiny: Any) -> None:
    with LLM.load(tiny.path, threads=1) as one, LLM.load(tiny.path, threads=2) as two:
        expected = answers(one)
        found: dict[int, list[list[tuple[int, ...]]]] = {0: [], 1: []}

        def ask(index: int, model: LLM) -> None:
            for _ in range(4):
                found[index].append(answers(model))

        callers = [threading.Thread(target=ask, args=(index, model)) for index, model in enumerate((one, two))]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(timeout=120)
        assert found == {0: [expected] * 4, 1: [expected] * 4}


def test_a_process_may_end_while_a_model_computes(tiny: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(tiny.path)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout) == (0, "leaving\n"), done.stderr
