"""Reasoning and answer: the split, however the text arrives."""

from __future__ import annotations

import re
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from chat_samples import DEEPSEEK_R1, QWEN_3
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from zoo.chat import ChatTemplate, Piece, ReasoningSplitter, find_template, starts_inside
from zoo.errors import TemplateError
from zoo.source import ModelSource

THINK = ("<think>", "</think>")
GEMMA = ("<|channel>thought\n", "<channel|>")
TAGS = [THINK, ("[THINK]", "[/THINK]"), GEMMA, ("<<a", "a<<"), ("◁think▷", "◁/think▷")]


def split(text: str, open_tag: str, close_tag: str, *, inside: bool, cuts: list[int]) -> list[Piece]:
    splitter = ReasoningSplitter(open_tag, close_tag, inside)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [piece for begin, end in pairwise(edges) for piece in splitter.push(text[begin:end])]
    pieces += splitter.flush()
    assert all(part for _, part in pieces)
    return [(kind, "".join(part for _, part in same)) for kind, same in groupby(pieces, key=lambda piece: piece[0])]


def whole(text: str, tags: tuple[str, str] = THINK, *, inside: bool = False) -> list[Piece]:
    return split(text, *tags, inside=inside, cuts=[])


def by_pattern(text: str, open_tag: str, close_tag: str, *, inside: bool) -> list[Piece]:
    """The same rules as one regular expression over the whole text."""
    opened, close = rf"\s*{re.escape(open_tag)}", re.escape(close_tag)
    begin = rf"(?:{opened}|(?!{opened}))" if inside else opened
    found = re.fullmatch(rf"{begin}[\r\n]*(?:(.*?)[\r\n]*{close}[\r\n]*(.*)|(.*))", text, re.DOTALL)
    if found is None:
        return [("content", text)] if text else []
    closed, content, cut_short = found.groups()
    reasoning = cut_short if closed is None else closed
    pieces: list[Piece] = [("reasoning", reasoning or ""), ("content", content or "")]
    return [piece for piece in pieces if piece[1]]


@pytest.mark.parametrize(
    ("text", "inside", "pieces"),
    [
        ("<think>a</think>b", False, [("reasoning", "a"), ("content", "b")]),
        ("<think>\na\nb\n</think>\n\nc\n\nd\n", False, [("reasoning", "a\nb"), ("content", "c\n\nd\n")]),
        (" \n<think>\r\n a \r\n</think> b", False, [("reasoning", " a "), ("content", " b")]),
        ("<think>\n\n</think>\n\nb", False, [("content", "b")]),
        ("a\n</think>\n\nb", True, [("reasoning", "a"), ("content", "b")]),
        ("<think>\na</think>b", True, [("reasoning", "a"), ("content", "b")]),
        ("a</think>b", False, [("content", "a</think>b")]),
        ("b", False, [("content", "b")]),
        ("  \nb", False, [("content", "  \nb")]),
        ("  \nb", True, [("reasoning", "  \nb")]),
        ("no end", True, [("reasoning", "no end")]),
        ("<think>cut short\n</thi", False, [("reasoning", "cut short\n</thi")]),
        ("<thi", False, [("content", "<thi")]),
        ("<thi", True, [("reasoning", "<thi")]),
        ("use <think>x</think> tags", False, [("content", "use <think>x</think> tags")]),
        ("<think>a</think>b<think>c</think>", False, [("reasoning", "a"), ("content", "b<think>c</think>")]),
        ("<think>a<think>b</think>c", False, [("reasoning", "a<think>b"), ("content", "c")]),
        ("<think>a</thin</think>c", False, [("reasoning", "a</thin"), ("content", "c")]),
        ("", False, []),
        ("\n", False, [("content", "\n")]),
        ("", True, []),
    ],
)
def test_thoughts_and_answers(text: str, inside: bool, pieces: list[Piece]) -> None:
    assert whole(text, inside=inside) == pieces


ALPHABET = ["<think>", "</think>", "[THINK]", "[/THINK]", "<|channel>thought\n", "<channel|>", "<<a", "a<<", "◁think▷"]
ALPHABET += ["◁/think▷", "<", "</", "think", ">", "\n", "\r\n", " ", "a", "é", "[", "thou", "ght\n"]


@pytest.mark.parametrize("tags", TAGS)
@settings(max_examples=200, deadline=None)
@example(parts=["<think>", "\n", "a", "\n", "\n", "</think>", "\n", "b"], cuts=list(range(40)), inside=False)
@example(parts=["a", "\n", "\r\n", "</", "\n", "</think>"], cuts=list(range(40)), inside=True)
@given(
    parts=st.lists(st.sampled_from(ALPHABET), max_size=10),
    cuts=st.lists(st.integers(0, 60), max_size=60),
    inside=st.booleans(),
)
def test_cuts_do_not_matter(tags: tuple[str, str], parts: list[str], cuts: list[int], inside: bool) -> None:
    text = "".join(parts)
    assert split(text, *tags, inside=inside, cuts=cuts) == by_pattern(text, *tags, inside=inside)


def test_text_is_not_held_longer_than_needed() -> None:
    splitter = ReasoningSplitter(*THINK)
    assert splitter.push("<thi") == []
    assert splitter.push("nk>\n") == []
    assert splitter.push("so, ") == [("reasoning", "so, ")]
    assert splitter.push("a < b\n") == [("reasoning", "a < b")]
    assert splitter.push("</b> ") == [("reasoning", "\n</b> ")]
    assert splitter.push("x</think>\n\nyes") == [("reasoning", "x"), ("content", "yes")]
    assert splitter.push("</think") == [("content", "</think")]
    assert splitter.flush() == []


@pytest.mark.parametrize(("open_tag", "close_tag"), [("", "</think>"), ("<think>", ""), ("x", "x")])
def test_tags_that_cannot_be_told_apart(open_tag: str, close_tag: str) -> None:
    with pytest.raises(TemplateError, match="two different tags are needed"):
        ReasoningSplitter(open_tag, close_tag)


@pytest.mark.parametrize(
    ("prompt", "tags", "inside"),
    [
        ("<｜User｜>2+2?<｜Assistant｜><think>\n", THINK, True),
        ("<｜Assistant｜><think>", THINK, True),
        ("<｜Assistant｜></think>", THINK, False),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", THINK, False),
        ("<|im_start|>assistant\n", THINK, False),
        ("<|im_start|>user\nwhat is <think>?<|im_end|>\n<|im_start|>assistant\n", THINK, False),
        ("<|turn>model\n<|channel>thought\n", GEMMA, True),
        ("<|turn>model\n<|channel>thought\n<channel|>", GEMMA, False),
        ("x /tag", ("tag", "/tag"), False),
        ("", THINK, False),
    ],
)
def test_where_a_prompt_ends(prompt: str, tags: tuple[str, str], inside: bool) -> None:
    assert starts_inside(prompt, *tags) is inside


@pytest.mark.parametrize(("text", "inside"), [(DEEPSEEK_R1, True), (QWEN_3, False)])
def test_a_tag_that_somebody_typed_does_not_open_a_thought(text: str, inside: bool) -> None:
    template = ChatTemplate(text, bos_token="<s>", eos_token="</s>", control_tokens=["<|im_end|>", *THINK])
    for content in ("2+2?", "<think>", "</think>", "<think>\n"):
        prompt = "".join(part for part, _ in template.render([{"role": "user", "content": content}]))
        assert starts_inside(prompt, *THINK) is inside


def test_a_model_that_does_not_think(smollm2: Path) -> None:
    with ModelSource.open(smollm2) as source:
        text = find_template(source)
    messages = [{"role": "user", "content": "<think>"}]
    prompts, _ = render_jinja_template([messages], chat_template=text, add_generation_prompt=True)
    assert starts_inside(prompts[0], *THINK) is False
