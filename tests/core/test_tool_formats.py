"""Tool calls as the models of each family write them: whole, in pieces, cut short, and what only looks like one."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.chat.tools import FORMATS, TextDelta, collect, format_of, parser_for

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "deep": {"type": "object"}},
            },
        },
    }
    for name in ("get_weather", "get_time")
]
CITY = {"city": 'Zürich 🌧 "x" {[', "deep": {"a": [1, {"b": "}]"}]}}
C, T = json.dumps(CITY, ensure_ascii=False), '{"city": "Rome"}'
WEATHER, TIME = ("get_weather", CITY), ("get_time", {"city": "Rome"})
DS = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
BEGIN, LAST = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"


def v3(name: str, arguments: str) -> str:
    return f"{DS[0]}function{DS[1]}{name}\n```json\n{arguments}\n```{DS[2]}"


def v31(name: str, arguments: str) -> str:
    return f"{DS[0]}{name}{DS[1]}{arguments}{DS[2]}"


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def coder(name: str, arguments: str) -> str:
    values = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in json.loads(arguments).items()
    }
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def item(name: str, arguments: str, id: str = "") -> str:
    end = f', "id": "{id}"' if id else ""
    return f'{{"name": "{name}", "arguments": {arguments}{end}}}'


# format, what the model writes before any text, the calls in it
WRITTEN: dict[str, tuple[str, str, list[Any]]] = {
    "deepseek v3": ("deepseek", f"{BEGIN}{v3('get_weather', C)}\n{v3('get_time', T)}{LAST}", [WEATHER, TIME]),
    "deepseek v3.1": ("deepseek", f"{BEGIN}{v31('get_weather', C)}{v31('get_time', T)}{LAST}", [WEATHER, TIME]),
    "hermes": ("hermes", hermes("get_weather", C) + "\n" + hermes("get_time", T), [WEATHER, TIME]),
    "hermes, arguments first": (
        "hermes",
        f'<tool_call>{{"arguments": {C}, "name": "get_weather"}}</tool_call>',
        [WEATHER],
    ),
    "hermes, list": (
        "hermes",
        f"<tool_call>[{item('get_weather', C)}, {item('get_time', T)}]</tool_call>",
        [WEATHER, TIME],
    ),
    "qwen3-coder": ("hermes", coder("get_weather", C) + "\n" + coder("get_time", T), [WEATHER, TIME]),
    "phi-4-mini": (
        "phi4",
        f"<|tool_call|>[{item('get_weather', C)},{item('get_time', T)}]<|/tool_call|>",
        [WEATHER, TIME],
    ),
    "mistral v3": (
        "mistral",
        f"[TOOL_CALLS] [{item('get_weather', C)}, {item('get_time', T, 'abcdefghi')}]",
        [WEATHER, TIME],
    ),
    "mistral v3, ids": (
        "mistral",
        f"[TOOL_CALLS][{item('get_weather', C, 'abcdefghi')}, {item('get_time', T, '123456789')}]",
        [WEATHER, TIME],
    ),
    "mistral small 3.2": (
        "mistral",
        f"[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{C}[TOOL_CALLS]get_time[CALL_ID]123456789[ARGS]{T}",
        [WEATHER, TIME],
    ),
    "ministral 3": ("mistral", f"[TOOL_CALLS]get_weather[ARGS]{C}[TOOL_CALLS]get_time[ARGS]{T}", [WEATHER, TIME]),
    "llama 3": ("llama3", item("get_weather", C).replace("arguments", "parameters"), [WEATHER]),
    "llama 3, two": ("llama3", f"{item('get_weather', C)}; {item('get_time', T)}", [WEATHER, TIME]),
    "llama 3, tagged": ("llama3", f"<|python_tag|>{item('get_weather', C)}<|eom_id|>", [WEATHER]),
    "llama 3, built in": ("llama3", '<|python_tag|>get_time.call(city="Rome")', [TIME]),
    "plain": ("plain", f"[{item('get_weather', C)}, {item('get_time', T)}]", [WEATHER, TIME]),
}
# What a confused model may put together.
PARTS = (
    *(
        'ab {}[],:"\\<>\n',
        "[TOOL_",
        "CALLS]",
        "[ARGS]",
        "<tool_call>",
        "</tool_call>",
        '{"name": "f"',
        ', "arguments": ',
    ),
    *(*DS, BEGIN, LAST, "<function=f>", "<|python_tag|>", "; ", " ", "{", "}", "[", "]", '"', "\n"),
)
# In these, text may stand before a call.
TALKING = [name for name in WRITTEN if name not in ("plain", "llama 3", "llama 3, two")]


def parse(format: str, text: str, cuts: list[int] = []) -> tuple[str, list[Any]]:  # noqa: B006
    """The text, and name and arguments of each call; arguments that are no JSON as they came."""
    parser = parser_for(format, TOOLS)
    bounds = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    deltas = [delta for a, b in itertools.pairwise(bounds) for delta in parser.push(text[a:b])]
    deltas += parser.flush()
    assert TextDelta("") not in deltas
    said, calls = collect(deltas)
    assert all(call.id for call in calls)
    assert len({call.id for call in calls}) == len(calls)
    return said, [(call.name, loads(call.arguments)) for call in calls]


def loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_as_they_are_written(name: str) -> None:
    format, text, calls = WRITTEN[name]
    assert parse(format, text) == ("", calls)
    assert parse(format, text, list(range(len(text)))) == ("", calls)


@pytest.mark.parametrize("name", TALKING)
def test_text_before_a_call_stays(name: str) -> None:
    format, text, calls = WRITTEN[name]
    before = "Let me look [1] at <that>.\n\nNow:"
    for cuts in ([], list(range(200))):
        assert parse(format, before + "\n\n" + text, cuts) == (before, calls)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(list(WRITTEN)), cuts=st.lists(st.integers(0, 1000), max_size=12))
def test_pieces_do_not_matter(name: str, cuts: list[int]) -> None:
    format, text, calls = WRITTEN[name]
    assert parse(format, text, cuts) == ("", calls)


@settings(max_examples=150, deadline=None)
@given(
    format=st.sampled_from([name for name in FORMATS if name != "plain"]),
    text=st.lists(st.sampled_from(PARTS)).map("".join),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)  # fmt: skip
def test_whatever_a_model_writes_is_taken(format: str, text: str, cuts: list[int]) -> None:
    """No error, and the same text and calls however it is cut."""
    assert parse(format, text, cuts) == parse(format, text, list(range(len(text))))


@settings(max_examples=100, deadline=None)
@given(
    format=st.sampled_from(list(FORMATS)),
    text=st.text(st.characters(exclude_characters="<[{")),
    cuts=st.lists(st.integers(0, 90)),
)
def test_an_answer_without_calls_is_itself(format: str, text: str, cuts: list[int]) -> None:
    assert parse(format, text, cuts) == (text, [])


@pytest.mark.parametrize(
    "name", [name for name in WRITTEN if name not in ("qwen3-coder", "hermes, arguments first", "llama 3, built in")]
)
def test_a_call_that_is_cut_keeps_the_arguments_that_came(name: str) -> None:
    """max_tokens may end an answer anywhere: what came of the arguments is a beginning of them."""
    format, text, calls = WRITTEN[name]
    at = text.index('{"city": "Zürich')
    for end in range(at + 2, at + len(C)):
        said, found = parse(format, text[:end])
        assert said == ""
        assert found == [("get_weather", text[at:end])]
    assert calls[0] == WEATHER


def test_a_coder_call_that_is_cut_keeps_its_name() -> None:
    assert parse("hermes", coder("get_weather", C)[:40]) == ("", [("get_weather", "")])


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("hermes", "<tool_call>no json</tool_call> and more"),
        ("hermes", "a < b <tool"),
        ("deepseek", f"{BEGIN}nothing"),
        ("mistral", "[TOOL_CALLS] " + "x" * 1100),
        ("llama3", '{"name": "not_a_tool", "parameters": {"a": 1}}'),
        ("llama3", '{"answer": 42}'),
        ("llama3", '{"name": "open'),
    ],
)
def test_what_is_no_call_is_text(format: str, text: str) -> None:
    assert parse(format, text) == (text, [])
    assert parse(format, text, list(range(len(text)))) == (text, [])


def test_tags_inside_of_strings_are_strings() -> None:
    arguments = '{"city": "</tool_call> <｜tool▁call▁end｜> [TOOL_CALLS]"}'
    for format, text in (
        ("hermes", hermes("get_weather", arguments)),
        ("deepseek", f"{BEGIN}{v31('get_weather', arguments)}{LAST}"),
        ("mistral", f"[TOOL_CALLS]get_weather[ARGS]{arguments}"),
    ):
        for cuts in ([], list(range(300))):
            assert parse(format, text, cuts) == ("", [("get_weather", json.loads(arguments))])


def test_text_streams_before_a_call_is_decided() -> None:
    parser = parser_for("hermes")
    assert parser.push("Hello wor") == [TextDelta("Hello wor")]
    assert parser.push("ld <to") == [TextDelta("ld")]
    assert parser.push("ast>") == [TextDelta(" <toast>")]


def test_arguments_stream() -> None:
    parser = parser_for("deepseek")
    parser.push(f"{BEGIN}{DS[0]}function{DS[1]}f\n```json\n")
    assert [delta.arguments for delta in parser.push('{"a": "lon') + parser.push("g te")] == ["", '{"a": "lon', "g te"]  # type: ignore[union-attr]


def test_mistral_ids_are_what_its_template_takes() -> None:
    parser = parser_for("mistral")
    _, calls = collect([*parser.push(WRITTEN["ministral 3"][1]), *parser.flush()])
    assert all(re.fullmatch("[A-Za-z0-9]{9}", call.id) for call in calls)
    parser = parser_for("mistral")
    _, calls = collect([*parser.push(WRITTEN["mistral small 3.2"][1]), *parser.flush()])
    assert [call.id for call in calls] == ["abcdefghi", "123456789"]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '<｜tool▁calls▁begin｜>' }}", "deepseek"),
        ("... within <tool_call></tool_call> XML tags", "hermes"),
        ("{{ '[TOOL_CALLS] [' }}", "mistral"),
        ("{{ '<|python_tag|>' }}", "llama3"),
        ("<|tool_call|>[]<|/tool_call|>", "phi4"),
        ("{{ messages }}", None),
    ],
)
def test_a_template_tells_its_format(template: str, name: str | None) -> None:
    found = format_of(template, None)
    assert (found and found.name) == name
