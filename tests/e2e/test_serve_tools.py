"""Forced tool calls, reasoning apart from content, and the README's curl lines."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from e2e.served import Served, serving
from zoo import LLM
from zoo.chat.tools import ToolCallDelta
from zoo.engine.result import Piece
from zoo.server.answers import ChatChoice
from zoo.server.prepare import Prepared, template_messages
from zoo.server.schema import ChatRequest

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% for c in m['tool_calls'] %}{{ c['function'] | tojson }}{% endfor %}<|im_end|>\n{% endfor %}assistant: "
)
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {"city": {"enum": cities}}, "required": ["city"],
        "additionalProperties": False}}}
    for name, cities in [("weather", ["Oslo", "Rome"]), ("time", ["Lima"])]
]  # fmt: skip
USER: Any = [{"role": "user", "content": "the"}]


@pytest.fixture(scope="module")
def served(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("tools")
    for file in Path(tiny.path).iterdir():
        (path / file.name).symlink_to(file)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").unlink()
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    with serving(lambda: LLM.load(path)) as server:
        yield server


def ask(client: openai.OpenAI, **options: Any) -> Any:
    values: dict[str, Any] = {"model": "x", "messages": USER, "tools": TOOLS, "max_tokens": 300, "seed": 3}
    return client.chat.completions.create(**{**values, **options})


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "time"}}], ids=["required", "named"]
)
def test_a_forced_call_streams_what_it_is_whole(served: Served, choice: Any) -> None:
    client = served.client()
    (whole,) = ask(client, tool_choice=choice, parallel_tool_calls=False).choices
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    (call,) = whole.message.tool_calls
    assert call.id
    assert (
        json.loads(call.function.arguments)["city"]
        in {"weather": ["Oslo", "Rome"], "time": ["Lima"]}[call.function.name]
    )
    assert choice == "required" or call.function.name == "time"
    name, arguments, reason = "", "", None
    for chunk in ask(client, tool_choice=choice, parallel_tool_calls=False, stream=True):
        for part in chunk.choices[0].delta.tool_calls or ():
            name, arguments = name + (part.function.name or ""), arguments + part.function.arguments
        reason = chunk.choices[0].finish_reason
    assert (name, arguments, reason) == (call.function.name, call.function.arguments, "tool_calls")


def test_three_turns_with_tools(served: Served) -> None:
    client, messages = served.client(), list(USER)
    for turn in range(3):
        answer = ask(client, messages=messages, tool_choice="required", parallel_tool_calls=False, seed=turn)
        message = answer.choices[0].message
        (call,) = message.tool_calls
        messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "17"}]
    assert ask(client, messages=messages, tool_choice="none", max_tokens=2).choices[0].message.tool_calls is None
    body = ChatRequest.model_validate(
        {"messages": [one if isinstance(one, dict) else one.model_dump() for one in messages]}
    )
    last = template_messages(body.messages, parsed=True)[-1]
    assert (last["role"], last["name"], last["content"]) == ("tool", call.function.name, "17")


def test_a_bad_schema_of_a_tool_is_refused(served: Served) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}]
    with pytest.raises(openai.BadRequestError, match="the grammar cannot be used"):
        ask(served.client(), tools=tools, tool_choice="required")


def test_reasoning_and_calls_are_deltas_of_their_own() -> None:
    choice = ChatChoice(Prepared([], TOOLS, "plain"), parallel=False)
    deltas = choice.take(Piece("", "hm"))
    deltas += choice.take(Piece('[{"name": "time", "arguments": {"city": 1}}, {"name": "ti'))
    deltas += choice.take(Piece('me", "arguments": {}}]', finish_reason="stop"))
    assert deltas[0] == {"reasoning_content": "hm"}
    calls = [call for delta in deltas[1:] for call in delta["tool_calls"]]
    assert {call["index"] for call in calls} == {0}, "the second call was not asked for"
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city": 1}'
    assert choice.finish_reason == "tool_calls"
    assert ToolCallDelta(0).arguments == ""


def test_the_readmes_curl_lines(served: Served) -> None:
    lines = re.findall(r"^curl .*$", (Path(__file__).parents[2] / "README.md").read_text(), re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        command = shlex.split(line.replace("http://127.0.0.1:7833", served.url))
        done = subprocess.run([*command, "-sS", "--fail-with-body"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr + done.stdout
        assert done.stdout.rstrip().endswith("data: [DONE]") == ("-N" in command)
        assert '"finish_reason"' in done.stdout
