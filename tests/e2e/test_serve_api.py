"""`zoo serve` as OpenAI's own client sees it: the answers are those of `LLM`, in OpenAI's shapes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from e2e.served import Served, serving
from oracle.checkpoints import VOCAB_SIZE, sample_ids
from zoo import LLM, SamplingParams
from zoo.server.app import ServerOptions
from zoo.server.worker import Worker

MESSAGES: Any = [{"role": "user", "content": "the theory"}]
GREEDY = SamplingParams(temperature=0, max_tokens=10)


@pytest.fixture(scope="module")
def llm(tiny: Any) -> Iterator[LLM]:
    with LLM.load(tiny.path) as model:
        yield model


@pytest.fixture(scope="module")
def served(tiny: Any) -> Iterator[Served]:
    with serving(lambda: LLM.load(tiny.path)) as server:
        yield server


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return served.client()


@pytest.fixture(autouse=True)
def nothing_is_left(served: Served) -> Iterator[None]:
    before = served.free_blocks()
    yield
    served.settle()
    assert served.free_blocks() == before


def ask(client: openai.OpenAI, **options: Any) -> Any:
    """A greedy chat of ten tokens."""
    return client.chat.completions.create(
        **{"model": "any", "messages": MESSAGES, "max_tokens": 10, "temperature": 0, **options}
    )


def test_chat(client: openai.OpenAI, llm: LLM) -> None:
    wanted = llm.chat(MESSAGES, GREEDY)
    answer = ask(client)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", wanted.text)
    assert choice.finish_reason == wanted.finish_reason == "length"
    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", "tiny", "chatcmpl-")
    counts = answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens
    assert counts == (wanted.prompt_tokens, 10, wanted.prompt_tokens + 10)
    assert ask(client, max_tokens=None, max_completion_tokens=3).usage.completion_tokens == 3


def test_streamed_chat_joins_to_the_same(client: openai.OpenAI, llm: LLM) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == llm.chat(MESSAGES, GREEDY).text
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 10
    assert all(chunk.usage is None and chunk.choices for chunk in ask(client, stream=True))


def test_the_stream_is_server_sent_events(served: Served) -> None:
    answer = served.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: ")) for event in events[:-2])


def test_completions_of_text_ids_and_several_of_either(client: openai.OpenAI, llm: LLM) -> None:
    texts, ids = ["the theory", "3.14"], [sample_ids(7), sample_ids(30, seed=1)]
    for prompt, alone in [(texts[0], texts[:1]), (texts, texts), (ids[0], ids[:1]), (ids, ids)]:
        answer = client.completions.create(model="any", prompt=prompt, max_tokens=10, temperature=0)
        assert [choice.text for choice in answer.choices] == [llm.generate(one, GREEDY).text for one in alone]
        assert [choice.index for choice in answer.choices] == list(range(len(alone)))
    assert client.completions.create(model="any", prompt="the", temperature=0).usage.completion_tokens <= 16


def test_streamed_completions_join_to_the_same(client: openai.OpenAI, llm: LLM) -> None:
    texts = ["", ""]
    for chunk in client.completions.create(
        model="any", prompt=["the theory", "3.14"], max_tokens=10, temperature=0, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [result.text for result in llm.generate(["the theory", "3.14"], GREEDY)]


def test_echo_and_logprobs_are_those_of_score(client: openai.OpenAI, llm: LLM) -> None:
    """What lm-eval's local-completions reads."""
    text = "the theory of the then, 3.14159 other words"
    ids = llm.tokenizer.encode(text)
    wanted = [None, *llm.score(text)]
    for prompt in (text, ids):
        for most in (0, 1):
            answer = client.completions.create(
                model="any", prompt=prompt, max_tokens=most, temperature=0, echo=True, logprobs=2
            )
            (choice,) = answer.choices
            found = choice.logprobs
            assert found.tokens[: len(ids)] == [llm.tokenizer.decode([id]) for id in ids]
            assert found.token_logprobs[: len(ids)] == pytest.approx(wanted, abs=1e-4)
            assert len(found.tokens) == len(ids) + most
            assert choice.text.startswith(text)
            assert found.text_offset[:3] == [0, len(found.tokens[0]), len(found.tokens[0] + found.tokens[1])]
            assert found.top_logprobs[0] is None
            for token, logprob, top in list(zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True))[
                1:
            ]:
                assert max(top.values()) >= logprob
                assert top[token] >= logprob
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 1)


def test_long_prompts_are_scored_in_chunks(client: openai.OpenAI, llm: LLM) -> None:
    ids = sample_ids(250, seed=5)
    answer = client.completions.create(model="any", prompt=ids, max_tokens=1, echo=True, logprobs=0)
    rows = llm.logits(ids).log_softmax(-1)
    wanted = [rows[at, token].item() for at, token in enumerate(ids[1:])]
    assert answer.choices[0].logprobs.token_logprobs[1:250] == pytest.approx(wanted, abs=1e-4)


def test_streamed_echo_is_the_whole_one(client: openai.OpenAI) -> None:
    options: Any = {
        "model": "any",
        "prompt": "the theory",
        "max_tokens": 5,
        "temperature": 0,
        "echo": True,
        "logprobs": 1,
    }
    whole = client.completions.create(**options).choices[0]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**options, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    for name in ("tokens", "token_logprobs", "text_offset"):
        parts = [value for chunk in chunks for value in getattr(chunk.logprobs, name)]
    assert parts == (
        getattr(whole.logprobs, name) if name == "tokens" else pytest.approx(getattr(whole.logprobs, name), abs=1e-4)
    )


def test_chat_logprobs(client: openai.OpenAI, llm: LLM) -> None:
    wanted = llm.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=10, logprobs=3))
    answer = ask(client, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert wanted.logprobs is not None
    assert [entry.logprob for entry in content] == pytest.approx([one.logprob for one in wanted.logprobs], abs=1e-4)
    assert b"".join(bytes(entry.bytes) for entry in content).decode("utf-8", "replace") == wanted.text
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)
    streamed = [
        entry
        for chunk in ask(client, logprobs=True, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in content], abs=1e-4)
    assert all(entry.top_logprobs == [] for entry in streamed)


def test_n_answers_have_seeds_of_their_own(client: openai.OpenAI, llm: LLM) -> None:
    texts = [choice.message.content for choice in ask(client, n=3, seed=5, temperature=1.0).choices]
    params = [SamplingParams(temperature=1.0, seed=seed, max_tokens=10) for seed in (5, 6, 7)]
    assert texts == [llm.chat(MESSAGES, one).text for one in params]
    assert len(set(texts)) == 3
    streamed = ["", "", ""]
    for chunk in ask(client, n=3, seed=5, temperature=1.0, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    assert ask(client, seed=-1, max_tokens=1).choices


def test_stop_strings(client: openai.OpenAI, llm: LLM) -> None:
    full = llm.chat(MESSAGES, GREEDY).text
    for stop in (full[4:6], [full[4:6], "zzz"]):
        (choice,) = ask(client, stop=stop).choices
        assert (choice.message.content, choice.finish_reason) == (full[: full.index(full[4:6])], "stop")


def test_logit_bias_and_penalties(client: openai.OpenAI, llm: LLM) -> None:
    token = llm.tokenizer.encode("e")[0]
    assert ask(client, logit_bias={str(token): 100}).choices[0].message.content == "e" * 10
    once = ask(client, logit_bias={str(token): 30}, presence_penalty=2, frequency_penalty=0).choices[0].message.content
    assert once == "e" * 10, "a small penalty does not outweigh the bias"
    extra: Any = {"repetition_penalty": 100.0, "top_k": 1}
    words = ask(client, extra_body=extra).choices[0].message.content
    assert words != ask(client).choices[0].message.content
    assert ask(client, extra_body={"top_k": -1, "min_p": 0.1}).choices


def test_models(client: openai.OpenAI, served: Served) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/name")


def test_tokenize_and_detokenize(served: Served, llm: LLM) -> None:
    text = "the <s> theory é"
    ids = served.post("/tokenize", {"prompt": text}).json()
    assert ids == {"tokens": llm.tokenizer.encode(text), "count": len(llm.tokenizer.encode(text)), "max_model_len": 256}
    assert served.post("/detokenize", {"tokens": ids["tokens"]}).json() == {"prompt": text}
    chat = served.post("/tokenize", {"messages": MESSAGES}).json()["tokens"]
    assert served.post("/detokenize", {"tokens": chat}).json()["prompt"] == "user: the theory<|im_end|>\nassistant: "


def read_metrics(served: Served) -> dict[str, float]:
    with served.http() as http:
        lines = http.get("/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_metrics_count(served: Served, client: openai.OpenAI) -> None:
    before = read_metrics(served)
    ask(client)
    served.settle()
    after = read_metrics(served)
    assert after["zoo_generated_tokens_total"] - before["zoo_generated_tokens_total"] == 10
    assert after["zoo_prompt_tokens_total"] - before["zoo_prompt_tokens_total"] == 20
    for name, count in [("zoo_time_to_first_token_seconds", 1), ("zoo_inter_token_latency_seconds", 9)]:
        assert after[f"{name}_count"] - before[f"{name}_count"] == count
    assert after["zoo_running_sequences"] == after["zoo_cache_usage_ratio"] == 0
    key = 'zoo_requests_total{path="/v1/chat/completions",status="200"}'
    assert after[key] - before.get(key, 0) == 1


def test_metrics_know_of_an_end_before_the_client(
    served: Served, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge = Worker._gauge
    monkeypatch.setattr(Worker, "_gauge", lambda self, llm: (time.sleep(0.3), gauge(self, llm))[1])
    ask(client, max_tokens=2)
    assert read_metrics(served)["zoo_running_sequences"] == 0


def test_what_an_assistant_said_goes_back_as_it_came(client: openai.OpenAI) -> None:
    message = ask(client).choices[0].message
    again = [*MESSAGES, message.model_dump(), {"role": "user", "content": "more"}]
    assert ask(client, messages=again).choices[0].message.content
    assert ask(client, messages=[*MESSAGES, message, MESSAGES[0]]).choices[0].message.content


def test_developer_is_system_and_parts_are_text(served: Served) -> None:
    def ids(role: str, content: Any) -> list[int]:
        return served.post("/tokenize", {"messages": [{"role": role, "content": content}]}).json()["tokens"]

    assert ids("developer", "the") == ids("system", "the") != ids("user", "the")
    assert ids("user", [{"type": "text", "text": "th"}, {"type": "text", "text": "e"}]) == ids("user", "the")


def test_null_is_absent_and_fields_without_effect_pass(served: Served) -> None:
    nothing = dict.fromkeys(
        ["temperature", "top_p", "n", "stop", "logit_bias", "tools", "tool_choice", "response_format", "stream_options"]
    )
    ignored = {"user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "x"}
    more = {"prompt_cache_key": "k", "model": None, "parallel_tool_calls": True, "modalities": ["text"]}
    answer = served.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1, **nothing, **ignored, **more})
    assert answer.status_code == 200


def test_an_answer_ends_with_the_context(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="any", prompt=[5] * 250, max_tokens=100, extra_body={"ignore_eos": True})
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (6, "length")
    with pytest.raises(openai.BadRequestError, match="300 tokens, the context 256") as caught:
        client.completions.create(model="any", prompt=[5] * 300)
    assert caught.value.code == "context_length_exceeded"


def test_a_second_request_is_served_from_the_cache(client: openai.OpenAI) -> None:
    ids = sample_ids(200, seed=77)
    options: Any = {"model": "any", "prompt": ids, "max_tokens": 5, "temperature": 0, "logprobs": 0}
    first, second = (client.completions.create(**options) for _ in range(2))
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens == 192  # whole blocks of 32
    assert second.choices[0].text == first.choices[0].text
    again = second.choices[0].logprobs.token_logprobs
    assert again == pytest.approx(first.choices[0].logprobs.token_logprobs, abs=1e-4)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_json_of_a_schema(client: openai.OpenAI, stream: bool) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        answer = ask(client, response_format=form, temperature=1.0, seed=seed, max_tokens=150, stream=stream)
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        else:
            (choice,) = answer.choices
            text = choice.message.content
            assert choice.finish_reason == "stop"
        value = json.loads(text)
        assert set(value) == {"name", "age"}
        assert len(value["name"]) <= 5
        assert 0 <= value["age"] <= 99


def test_any_json_object_and_a_grammar(client: openai.OpenAI) -> None:
    bias = {str(client_id): 5 for client_id in range(60)}
    answer = ask(
        client, response_format={"type": "json_object"}, temperature=1.0, seed=1, max_tokens=150, logit_bias=bias
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{")
    grammar = 'start: ("yes" | "no") " " /[0-9]{3}/'
    text = ask(client, temperature=1.0, extra_body={"grammar": grammar}).choices[0].message.content
    assert text.split()[0] in ("yes", "no")
    assert len(text.split()[1]) == 3


def test_cut_json_is_not_called_whole(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    (choice,) = ask(client, response_format=form, max_tokens=3).choices
    assert choice.finish_reason == "length"


def test_served_name_and_strict_model(tiny: Any) -> None:
    options = ServerOptions(served_name="my/model", strict_model=True)
    with serving(lambda: LLM.load(tiny.path, context=64), options) as server:
        client = server.client()
        assert client.models.retrieve("my/model").id == "my/model"
        assert client.completions.create(model="my/model", prompt="the", max_tokens=1).model == "my/model"
        with pytest.raises(openai.NotFoundError, match="there is no model 'other'") as caught:
            client.completions.create(model="other", prompt="the")
        assert caught.value.code == "model_not_found"


def test_logprobs_are_finite(client: openai.OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=20, logit_bias={str(id): -100 for id in range(3, VOCAB_SIZE - 4)})
    for entry in answer.choices[0].logprobs.content:
        assert all(math.isfinite(top.logprob) for top in entry.top_logprobs)
