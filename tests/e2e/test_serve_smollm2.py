"""A real model behind the server, asked by OpenAI's own client."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from e2e.served import Served, serving
from zoo import LLM

# No token of the answer is a close call: rounding must not decide it.
FRANCE: Any = [{"role": "user", "content": "Name the capital of France."}]


@pytest.fixture(scope="module")
def served(smollm2: Path) -> Iterator[Served]:
    with serving(lambda: LLM.load(smollm2, device="cpu", context=1024), name="smollm2") as server:
        yield server


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return served.client()


def ask(client: openai.OpenAI, **options: Any) -> Any:
    values: dict[str, Any] = {"model": "smollm2", "messages": FRANCE, "temperature": 0, "max_tokens": 24}
    return client.chat.completions.create(**{**values, **options})


def test_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens > 10
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        answer.choices[0].message.content
    )
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0, "the second time the prompt was in the cache"


def test_completion_whole_streamed_and_by_ids(served: Served, client: openai.OpenAI) -> None:
    text = "The capital of France is"
    options: Any = {"model": "smollm2", "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(prompt=text, **options).choices[0]
    assert "Paris" in whole.text
    assert whole.finish_reason == "length"
    assert "".join(part.choices[0].text for part in client.completions.create(prompt=text, stream=True, **options)) == (
        whole.text
    )
    ids = served.post("/tokenize", {"prompt": text}).json()["tokens"]
    assert client.completions.create(prompt=ids, **options).choices[0].text == whole.text


def test_json_of_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "country": {"enum": ["France", "Spain"]}},
        "required": ["city", "country"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    answer = ask(client, response_format=form, max_tokens=80).choices[0]
    assert answer.finish_reason == "stop"
    assert json.loads(answer.message.content) == {"city": "Paris", "country": "France"}


def test_logprobs(client: openai.OpenAI) -> None:
    content = ask(client, logprobs=True, top_logprobs=5, max_tokens=8).choices[0].logprobs.content
    assert len(content) > 4
    for entry in content:
        tops = [top.logprob for top in entry.top_logprobs]
        assert tops == sorted(tops, reverse=True)
        assert entry.logprob == pytest.approx(tops[0])
        assert sum(map(math.exp, tops)) <= 1 + 1e-4


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        ask(client, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="smollm2", prompt=[5] * 1100)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_many_clients_at_once_get_their_own_answers(client: openai.OpenAI) -> None:
    capitals = {"Germany": "Berlin", "Russia": "Moscow", "Greece": "Athens", "Egypt": "Cairo"}
    asked = [[{"role": "user", "content": f"Name the capital of {country}."}] for country in capitals]
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda one: ask(client, messages=one).choices[0].message.content, asked))
    for capital, text in zip(capitals.values(), texts, strict=True):
        assert capital in text
