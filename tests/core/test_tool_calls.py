"""The neutral format of tool calls, and how a format is chosen."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.chat.tools import FORMATS, TextDelta, collect, format_of, parser_for
from zoo.errors import TemplateError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
calls = st.lists(st.tuples(st.text('ab_"\\é', min_size=1), st.dictionaries(st.text(), values)), min_size=1, max_size=3)


def parse(text: str, cuts: list[int]) -> tuple[str, list[tuple[str, str]]]:
    parser, bounds = parser_for("plain"), sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    deltas = [delta for a, b in itertools.pairwise(bounds) for delta in parser.push(text[a:b])]
    said, found = collect([*deltas, *parser.flush()])
    return said, [(call.name, call.arguments) for call in found]


@settings(max_examples=60)
@given(calls=calls, cuts=st.lists(st.integers(0, 500)), indent=st.sampled_from([None, 2]), ascii=st.booleans())
def test_calls_come_out_as_they_went_in(calls: list[Any], cuts: list[int], indent: int | None, ascii: bool) -> None:
    whole = [{"name": name, "arguments": arguments} for name, arguments in calls]
    said, found = parse(json.dumps(whole, indent=indent, ensure_ascii=ascii), cuts)
    assert said == ""
    assert [(name, json.loads(text)) for name, text in found] == calls


@settings(max_examples=60)
@given(text=st.text(), cuts=st.lists(st.integers(0, 100)))
def test_other_text_is_text(text: str, cuts: list[int]) -> None:
    said, found = parse("x" + text, cuts)
    assert (said, found) == ("x" + text, [])


@pytest.mark.parametrize("end", range(1, 62))
def test_a_call_that_is_cut_keeps_what_came(end: int) -> None:
    text = '[{"name": "look", "arguments": {"where": "here", "deep": [1]}}]'
    said, found = parse(text[:end], [])
    if found:
        assert said == ""
        assert found == [("look", '{"where": "here", "deep": [1]}'[: max(0, end - 31)])]
    else:
        assert said == text[:end]


def test_every_call_has_an_id_of_its_own() -> None:
    parser = parser_for("plain")
    deltas = parser.push('[{"name":"a","arguments":{}},{"name":"a","arguments":{}}]')
    first, second = collect(deltas)[1]
    assert first.id
    assert first.id != second.id


def test_the_plugin_decides_before_the_template() -> None:
    assert format_of(None, "plain") is FORMATS["plain"]
    assert format_of(None, None) is None
    assert format_of("{{ messages }}", None) is None
    with pytest.raises(TemplateError, match=r"names the tool call format 'morse'; use one of .*plain"):
        format_of(None, "morse")


def test_text_deltas_are_never_empty() -> None:
    parser = parser_for("plain")
    assert [*parser.push(""), *parser.push("a"), *parser.push(""), *parser.flush()] == [TextDelta("a")]
