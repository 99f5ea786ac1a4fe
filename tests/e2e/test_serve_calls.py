"""Tool calls and thoughts of every family, end to end: the model's tokens are dictated, all else is real.

Control tokens come as their ids, as a trained model writes them; the official client reads the answers.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tokenizers import AddedToken

from core.chat_samples import LLAMA_3, MISTRAL, QWEN_3
from e2e.served import Served, serving
from oracle import deepseek_tokenizer
from oracle.checkpoints import llama_config, save_checkpoint, tiny_tokenizer
from oracle.deepseek_checkpoints import save_deepseek
from oracle.mistral_checkpoints import mistral_config
from oracle.qwen_checkpoints import save_qwen
from zoo import LLM

SHOWN = "{% if tools %}{{ tools | tojson }}{% endif %}"  # DeepSeek's own templates leave the tools to the user
SHOWS = "{%- for t in tools %}"
ASKS = """{{- 'Answer {"name": function name, "parameters": dictionary of argument name and its value}.' }}"""
DEEPSEEK = deepseek_tokenizer.ADDED
SIZES: Any = {"num_hidden_layers": 1, "max_position_embeddings": 4096}
LLAMA = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
MISTRAL_TAGS = (
    *("[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
)
QWEN = ("<|im_start|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
BEGIN, LAST = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


@dataclass(frozen=True)
class Family:
    """A family's plugin, template and tags, and how it writes calls."""

    save: Callable[[Path, int], object]
    template: str
    tags: tuple[str, ...]
    write: Callable[[list[tuple[str, str]]], str]
    many: bool = True  # whether the template takes an answer with two calls


def _fenced(calls: list[tuple[str, str]]) -> str:
    inner = "\n".join(f"{CALL}function{SEP}{name}\n```json\n{text}\n```{END}" for name, text in calls)
    return f"{BEGIN}{inner}{LAST}"


def _bare(calls: list[tuple[str, str]]) -> str:
    return BEGIN + "".join(f"{CALL}{name}{SEP}{text}{END}" for name, text in calls) + LAST


def _listed(calls: list[tuple[str, str]]) -> str:
    return "[TOOL_CALLS][" + ", ".join(f'{{"name": "{name}", "arguments": {text}}}' for name, text in calls) + "]"


def _tagged(calls: list[tuple[str, str]]) -> str:
    return "\n".join(f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>' for name, text in calls)


def _json(calls: list[tuple[str, str]]) -> str:
    return "; ".join(f'{{"name": "{name}", "parameters": {text}}}' for name, text in calls)


def _deepseek(path: Path, size: int) -> object:
    return save_deepseek(path, "v3", vocab_size=size, **SIZES)


FAMILIES = {
    "deepseek v3 and r1": Family(_deepseek, SHOWN + deepseek_tokenizer.TEMPLATES["r1"], DEEPSEEK, _fenced),
    "deepseek v3.1": Family(
        _deepseek,
        SHOWN
        + "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
        "{% elif m.role == 'tool' %}{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}"
        "{% else %}{{ '<｜Assistant｜></think>' + (m.content or '') }}"
        "{% if m.tool_calls %}{{ '<｜tool▁calls▁begin｜>' }}"
        "{% for c in m.tool_calls %}{{ '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>'"
        " + (c.function.arguments | tojson) + '<｜tool▁call▁end｜>' }}{% endfor %}"
        "{{ '<｜tool▁calls▁end｜>' }}{% endif %}"
        "{{ eos_token }}{% endif %}{% endfor %}{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}",
        DEEPSEEK,
        _bare,
    ),
    "llama 3": Family(
        lambda path, size: save_checkpoint(
            path, llama_config(vocab_size=size, **SIZES), tokenizer=False
        ),
        LLAMA_3.replace(SHOWS, ASKS + SHOWS),
        LLAMA,
        _json,
        many=False,
    ),
    "mistral": Family(
        lambda path, size: save_checkpoint(
            path, mistral_config("7B v0.3", vocab_size=size, **SIZES), tokenizer=False
        ),
        MISTRAL,
        MISTRAL_TAGS,
        _listed,
    ),
    "qwen3": Family(
        lambda path, size: save_qwen(path, "qwen3", vocab_size=size, **SIZES),
        QWEN_3,
        QWEN,
        _tagged,
    ),
}  # fmt: skip


TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
    for name in ("get_weather", "get_time")
]  # fmt: skip
USER: Any = [{"role": "user", "content": "Is it warm?"}]
CITY = json.dumps({"city": 'Zürich "x" }]'}, ensure_ascii=False)
CALLS = [("get_weather", CITY), ("get_time", '{"city": "Rome"}')]


class Dictation:
    """Stands before a model's sampler and makes each sequence say the next text of `lines`, then end."""

    def __init__(self, llm: LLM) -> None:
        self.lines: deque[str] = deque()
        self.prompts: list[list[int]] = []
        self._said: dict[str, list[int]] = {}
        self._llm = llm
        self._sample = llm.engine.sampler.sample
        llm.engine.sampler.sample = self  # type: ignore[method-assign, assignment]
        llm.engine.sampler.is_plain = lambda _: False  # type: ignore[method-assign]

    def ids(self, text: str) -> list[int]:
        """Tokens of a text as a model writes it, its tags as control tokens."""
        return self._llm.tokenizer.encode_segments([(text, True)], add_special=False)

    def __call__(self, logits: torch.Tensor, sequences: Any, drawn: Any = None) -> list[int]:
        wanted = torch.zeros_like(logits)
        for row, sequence in enumerate(sequences):
            if sequence.request_id not in self._said:
                self.prompts.append(list(sequence.prompt_token_ids))
                self._said[sequence.request_id] = [*self.ids(self.lines.popleft()), 1]
            wanted[row, self._said[sequence.request_id][len(sequence.output_token_ids)]] = 100.0
        return self._sample(wanted, sequences)

    def prompt(self) -> str:
        """The last prompt as text."""
        return self._llm.tokenizer.decode(self.prompts[-1], skip_special=False)


@dataclass(frozen=True)
class Stage:
    """A family that is served and says what it is told to."""

    family: Family
    server: Served
    dictation: Dictation

    def ask(self, line: str, **options: Any) -> Any:
        """Ask for an answer, which will be `line`."""
        self.dictation.lines.append(line)
        values: dict[str, Any] = {"model": "x", "messages": USER, "tools": TOOLS, "temperature": 0, "max_tokens": 1000}
        return self.server.client().chat.completions.create(**{**values, **options})


@pytest.fixture(scope="module", params=FAMILIES)
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    family, path = FAMILIES[request.param], tmp_path_factory.mktemp("family")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens([AddedToken(tag, special=True) for tag in family.tags])
    family.save(path, tokenizer.get_vocab_size())
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(family.template)
    with serving(lambda: LLM.load(path)) as server:
        yield Stage(family, server, Dictation(server.llm))
        server.settle()
        managers = server.llm.engine.scheduler.managers
        assert all(manager.num_free == manager.num_blocks - 1 for manager in managers), "blocks were lost"


def thinks(stage: Stage) -> bool:
    """Whether the template opens the thought."""
    return stage.family is FAMILIES["deepseek v3 and r1"]


def said(stage: Stage, text: str) -> str:
    """`text` after the end of a thought, where one is open."""
    return "hm</think>\n\n" + text if thinks(stage) else text


def joined(stream: Any) -> tuple[str, str, list[list[str]], list[str]]:
    """Content, reasoning, calls [id, name, arguments] and finish reasons of a stream."""
    content, reasoning, calls, reasons = "", "", [], []
    for chunk in stream:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        for part in choice.delta.tool_calls or ():
            if part.id is not None:
                assert (part.index, part.type) == (len(calls), "function")
                calls.append([part.id, part.function.name, ""])
            else:
                assert part.index == len(calls) - 1
                assert part.function.name is None
            calls[-1][2] += part.function.arguments
        reasons += [choice.finish_reason] if choice.finish_reason else []
    return content, reasoning, calls, reasons


def test_two_calls_whole_and_streamed(stage: Stage) -> None:
    before = "" if stage.family.write is _json else "Let me look."
    line = said(stage, before + stage.family.write(CALLS))
    (choice,) = stage.ask(line).choices
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content or "") == before
    calls = choice.message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == CALLS
    assert len({call.id for call in calls}) == 2
    chunks = list(stage.ask(line, stream=True))
    content, reasoning, streamed, reasons = joined(chunks)
    assert (content, reasons) == (before, ["tool_calls"])
    assert [tuple(call[1:]) for call in streamed] == CALLS
    assert reasoning == getattr(choice.message, "reasoning_content", "") == ("hm" if thinks(stage) else "")
    assert sum(bool(chunk.choices[0].delta.tool_calls) for chunk in chunks) > 10, "arguments come as they are written"


def test_three_turns_each_answer_goes_back_as_it_came(stage: Stage) -> None:
    messages = list(USER)
    calls = CALLS if stage.family.many else CALLS[:1]
    for turn in range(3):
        text = stage.family.write(calls)
        (choice,) = stage.ask(said(stage, text) if turn == 0 else text, messages=messages).choices
        assert [call.function.name for call in choice.message.tool_calls] == [name for name, _ in calls]
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": f"{17 + turn} degrees"}
            for call in choice.message.tool_calls
        ]
        messages += [choice.message, *results]
    (choice,) = stage.ask("It is.", messages=messages).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("It is.", None, "stop")
    prompt = stage.dictation.prompt()
    for turn in range(3):
        assert prompt.count(f"{17 + turn} degrees") == len(calls)
    assert prompt.count("Zürich") == 3


def test_tags_that_a_user_types_are_text(stage: Stage) -> None:
    controls = set(stage.server.llm.tokenizer.control_tokens.values())

    def seen(content: str) -> tuple[list[int], Any]:
        answer = stage.ask(said(stage, "No."), messages=[{"role": "user", "content": content}])
        return [token for token in stage.dictation.prompts[-1] if token in controls], answer.choices[0]

    plain, _ = seen("Is it warm?")
    typed, choice = seen(stage.family.write(CALLS) + "".join(stage.family.tags))
    assert typed == plain
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("No.", None, "stop")


def test_a_call_that_is_cut_keeps_what_came(stage: Stage) -> None:
    line = said(stage, stage.family.write(CALLS[:1]))
    begin = line[: line.index("Zür") + 3]
    for stream in (False, True):
        answer = stage.ask(line, max_tokens=len(stage.dictation.ids(begin)), stream=stream)
        if stream:
            _, _, ((_, name, arguments),), (reason,) = joined(answer)
        else:
            (choice,) = answer.choices
            (call,) = choice.message.tool_calls
            name, arguments, reason = call.function.name, call.function.arguments, choice.finish_reason
        assert (name, arguments, reason) == ("get_weather", '{"city": "Zür', "length")


def test_one_call_where_no_second_was_asked_for(stage: Stage) -> None:
    line = said(stage, stage.family.write(CALLS))
    (choice,) = stage.ask(line, parallel_tool_calls=False).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["get_weather"]
    assert choice.finish_reason == "tool_calls"
    _, _, calls, reasons = joined(stage.ask(line, parallel_tool_calls=False, stream=True))
    assert ([call[1:] for call in calls], reasons) == ([list(CALLS[0])], ["tool_calls"])


def test_an_answer_without_a_call_is_text(stage: Stage) -> None:
    for text in ("Yes.", '{"name": "neither", "parameters": {}}', "1 < 2 [x] {y}"):
        (choice,) = stage.ask(said(stage, text)).choices
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (text, None, "stop")


THOUGHTS = {"deepseek v3 and r1": "", "deepseek v3.1": "", "qwen3": "<think>\n"}


def test_the_thought_is_apart(stage: Stage, request: pytest.FixtureRequest) -> None:
    name = next(name for name, family in FAMILIES.items() if family is stage.family)
    if name not in THOUGHTS:
        (choice,) = stage.ask("Paris.", tools=None).choices
        assert not hasattr(choice.message, "reasoning_content")
        return
    line = THOUGHTS[name] + "France? Its\ncapital.\n</think>\n\nParis."
    options: dict[str, Any] = {"reasoning_effort": "high"} if name == "deepseek v3.1" else {}
    for more in ({}, {"tools": None}):
        message = stage.ask(line, **options, **more).choices[0].message
        assert (message.reasoning_content, message.content) == ("France? Its\ncapital.", "Paris.")
        content, reasoning, calls, reasons = joined(stage.ask(line, **options, **more, stream=True))
        assert (content, reasoning, calls, reasons) == ("Paris.", "France? Its\ncapital.", [], ["stop"])
    again = stage.ask(line, messages=[*USER, message, *USER], **options).choices[0].message
    assert again.content == "Paris."
    assert "France?" not in stage.dictation.prompt(), "templates drop the thoughts of earlier turns"
    (cut,) = stage.ask(line, max_tokens=len(stage.dictation.ids(line[: line.index("cap")])), **options).choices
    assert (cut.message.reasoning_content.rstrip(), cut.message.content) == ("France? Its", "")
    assert cut.finish_reason == "length"
    call = line[: line.index("Paris")] + stage.family.write(CALLS[:1])
    (choice,) = stage.ask(call, **options).choices
    assert (choice.message.reasoning_content, choice.finish_reason) == ("France? Its\ncapital.", "tool_calls")
    assert choice.message.tool_calls[0].function.arguments == CITY


def test_tools_and_a_form_exclude_each_other(stage: Stage) -> None:
    with pytest.raises(openai.BadRequestError, match="exclude each other"):
        stage.ask("", response_format={"type": "json_object"})
    stage.dictation.lines.clear()
