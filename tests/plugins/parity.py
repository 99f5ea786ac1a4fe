"""What the tests of architecture plugins share: logits of zoo and llama.cpp, and batches packed by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from oracle.llamacpp import LlamaCpp
from zoo import LLM, SamplingParams
from zoo.engine import sequence as engine
from zoo.engine.scheduler import Chunk

TOLERANCE = 1e-4


@contextmanager
def loaded(path: Path, **options: Any) -> Iterator[LLM]:
    """A model in float32 throughout."""
    with LLM.load(path, **{"device": "cpu", "dtype": "float32", "cache_dtype": "float32", **options}) as llm:
        yield llm


def zoo_logits(path: Path, ids: Sequence[int], **options: Any) -> Tensor:
    with loaded(path, **options) as llm:
        return llm.logits(ids)


def llamacpp_logits(path: Path, ids: Sequence[int]) -> Tensor:
    with LlamaCpp(path, context=256, threads=1) as model:
        return torch.from_numpy(model.logits(ids))


def transformers_reference(directory: Path, ids: Sequence[int]) -> tuple[Tensor, Sequence[Tensor]]:
    """Logits and hidden states of transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        out = model(torch.tensor([list(ids)]), output_hidden_states=True)
    return out.logits[0], [state[0] for state in out.hidden_states]


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    assert 1 < wanted.std() < 3, "the checkpoint's logits are too small or too large to tell anything"
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < TOLERANCE


def run_chunks(llm: LLM, steps: Sequence[Sequence[tuple[list[int], int, int]]]) -> dict[int, Tensor]:
    """Logits of every token, by id() of the prompt; a step is a list of (prompt, start, stop), run as one packed batch.

    Blocks that a window has left are given back after each step, as the engine does.
    """
    runner, managers = llm._engine.runner, llm._engine.scheduler.managers
    sequences: dict[int, engine.Sequence] = {}
    rows: dict[int, list[Tensor]] = {}
    for step in steps:
        chunks = []
        for ids, start, stop in step:
            sequence = sequences.setdefault(
                id(ids), engine.Sequence(f"t{len(sequences)}", tuple(ids), SamplingParams(), frozenset(), 1)
            )
            for manager in managers:
                manager.grow(sequence.request_id, stop)
            chunks.append(Chunk(sequence, start, stop - start))
        batch = runner.batch(chunks, managers, all_logits=True)
        parts = runner.forward(batch).split([chunk.length for chunk in chunks])
        for (ids, _, _), part, chunk in zip(step, parts, chunks, strict=True):
            rows.setdefault(id(ids), []).append(part)
            llm._engine.scheduler.computed(chunk)
    for sequence in sequences.values():
        for manager in managers:
            manager.free(sequence.request_id)
    return {key: torch.cat(parts) for key, parts in rows.items()}
