"""lm-eval's local-completions: log likelihoods of a task of our own are those of `LLM.score`.

lm-eval brings dozens of packages and is no requirement of the tests. Where it can be imported it runs; everywhere the
requests that it sends are sent, and read as it reads them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.served import Served, serving
from oracle.checkpoints import llama_config, save_checkpoint
from zoo import LLM

DOCS = [
    {"question": "the theory of the", "choices": [" other words", " then", " 3.14159"], "answer": 0},
    {"question": "It isn't what they'd", "choices": [" say", " say: every", " jump over a fence."], "answer": 1},
    {"question": "99 brown", "choices": [" dogs", " cats", " theories, 2024"], "answer": 0},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scored")
    save_checkpoint(path, llama_config())
    # transformers would otherwise put Llama 2's way of cutting text in place of what the file says.
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"})
    )
    return path


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[Served]:
    with serving(lambda: LLM.load(model)) as server:
        yield server


@pytest.fixture(scope="module")
def wanted(model: Path) -> list[list[float]]:
    """The log likelihood of each choice after its question."""
    with LLM.load(model) as llm:

        def likelihood(question: str, choice: str) -> float:
            cut = len(llm.tokenizer.encode(question))
            assert llm.tokenizer.encode(question + choice)[:cut] == llm.tokenizer.encode(question)
            return sum(llm.score(question + choice)[cut - 1 :])

        return [[likelihood(doc["question"], choice) for choice in doc["choices"]] for doc in DOCS]


@pytest.mark.parametrize("tokenized", [True, False])
def test_its_requests(served: Served, wanted: list[list[float]], tokenized: bool) -> None:
    encode = served.llm.tokenizer.encode
    for doc, values in zip(DOCS, wanted, strict=True):
        texts = [doc["question"] + choice for choice in doc["choices"]]
        prompt = [encode(text) for text in texts] if tokenized else texts
        body = {"model": "x", "prompt": prompt, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234}
        answer = served.post("/v1/completions", {**body, "echo": True}).json()
        context = len(encode(doc["question"]))
        for choice, value in zip(sorted(answer["choices"], key=lambda one: one["index"]), values, strict=True):
            found = choice["logprobs"]["token_logprobs"][context:-1]
            assert sum(found) == pytest.approx(value, abs=1e-4)
            for one, top in zip(found, choice["logprobs"]["top_logprobs"][context:-1], strict=True):
                assert one <= max(top.values()), "so it tells whether the choice is the greedy one"


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_real_one(
    served: Served,
    model: Path,
    wanted: list[list[float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval import simple_evaluate  # type: ignore[import-not-found]

    (tmp_path / "task.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    task: Any = {
        "task": "ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "task.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    arguments = {"model": str(model), "base_url": f"{served.url}/v1/completions", "tokenizer_backend": "huggingface"}
    results = simple_evaluate(
        "local-completions",
        model_args=arguments,
        tasks=[task],
        batch_size=batch_size,
        log_samples=True,
        cache_requests=False,
    )
    samples = sorted(results["samples"]["ours"], key=lambda sample: sample["doc_id"])
    found = [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples]
    assert [value for row in found for value in row] == pytest.approx(
        [value for row in wanted for value in row], abs=1e-4
    )
    right = [max(range(3), key=row.__getitem__) == doc["answer"] for row, doc in zip(wanted, DOCS, strict=True)]
    assert results["results"]["ours"]["acc,none"] == pytest.approx(sum(right) / 3)
