"""Tool calls in what a model writes: one parser per format, which works while the text streams.

A format is an entry of `FORMATS`. A plugin names its own in `tool_call_format`; for other models `format_of` knows it
by what the chat template writes. The server feeds the parser with the answer after the reasoning has been split off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from zoo.chat.calls import PlainCalls
from zoo.chat.deltas import Delta, TextDelta, ToolCallDelta, new_call_id
from zoo.chat.tagged import DeepSeekCalls, HermesCalls, JsonCalls, LlamaCalls, MistralCalls
from zoo.errors import TemplateError

__all__ = [
    "FORMATS",
    "Delta",
    "TextDelta",
    "ToolCall",
    "ToolCallDelta",
    "ToolFormat",
    "ToolParser",
    "Tools",
    "collect",
    "format_of",
    "new_call_id",
    "parser_for",
]

Tools: TypeAlias = Sequence[Mapping[str, Any]]
"""Tools as in a request: `{"type": "function", "function": {"name", "description", "parameters": JSON schema}}`."""


class ToolParser(Protocol):
    """Takes the text of one answer as it comes, gives text and tool calls. One object per answer.

    However the text is cut into pushes, the deltas join to the same: texts to the same text, and the arguments of each
    index to the same string. Text is given as soon as it cannot become a call; a call is announced by one delta with
    its id and name, then its arguments follow, in as many deltas as one likes. A parser never raises for what a model
    wrote: what is no call is text. A call that is cut short (max_tokens) keeps the arguments that came, as they came.
    """

    def push(self, text: str) -> list[Delta]:
        """Take the next text of the answer; return what is certain by now."""

    def flush(self) -> list[Delta]:
        """The answer has ended: return what was held back. Called once, last."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way of writing tool calls.

    `tags`: spellings that mark calls and that may be control tokens of the vocabulary; they must stay visible when
    tokens become text. `parser` makes the parser of one answer, from the tools of the request. `recognise` says whether
    a chat template (its jinja source) teaches this format; None: only a plugin or the server itself chooses it.
    """

    name: str
    tags: tuple[str, ...]
    parser: Callable[[Tools], ToolParser]
    recognise: Callable[[str], bool] | None = None


def _writes(*spellings: str) -> Callable[[str], bool]:
    return lambda template: any(spelling in template for spelling in spellings)


_KNOWN = (
    ToolFormat(
        "deepseek",
        (*DeepSeekCalls.openers, DeepSeekCalls.separator, DeepSeekCalls.closing, DeepSeekCalls.last),
        lambda tools: DeepSeekCalls(),
        _writes(DeepSeekCalls.openers[0]),
    ),
    ToolFormat(
        "mistral",
        (*MistralCalls.openers, *MistralCalls.marks),
        lambda tools: MistralCalls(),
        _writes(MistralCalls.openers[0]),
    ),
    ToolFormat("hermes", ("<tool_call>", "</tool_call>"), HermesCalls, _writes("<tool_call>")),
    ToolFormat(
        "phi4",
        ("<|tool_call|>", "<|/tool_call|>"),
        lambda tools: JsonCalls("<|tool_call|>", "<|/tool_call|>"),
        _writes("<|tool_call|>", "<|tool|>"),  # Phi-4-mini's own template spells the list of tools only
    ),
    ToolFormat(
        "llama3",
        (*LlamaCalls.openers, LlamaCalls.closing),
        LlamaCalls,
        _writes("<|python_tag|>", '"parameters": dictionary of argument name and its value'),
    ),
    ToolFormat("plain", (), lambda tools: PlainCalls()),
)

FORMATS: Mapping[str, ToolFormat] = MappingProxyType({entry.name: entry for entry in _KNOWN})
"""Every known format by name. The order is the order in which `format_of` asks."""


def format_of(template: str | None, declared: str | None) -> ToolFormat | None:
    """The format of a model: the one that its plugin declares, else the first that recognises its chat template.

    None: the model writes calls in no format that is known here. Raises TemplateError for a declared name that no
    format has.
    """
    if declared is not None:
        if declared not in FORMATS:
            raise TemplateError(
                f"the plugin names the tool call format {declared!r}", remedy=f"use one of {', '.join(FORMATS)}"
            )
        return FORMATS[declared]
    if template is None:
        return None
    return next((entry for entry in FORMATS.values() if entry.recognise and entry.recognise(template)), None)


def parser_for(format: str, tools: Tools = ()) -> ToolParser:
    """A parser for one answer in the format of this name. Raises KeyError for an unknown name."""
    return FORMATS[format].parser(tools)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One whole call; `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


def collect(deltas: Sequence[Delta]) -> tuple[str, tuple[ToolCall, ...]]:
    """The text and the calls that deltas join to."""
    text: list[str] = []
    calls: dict[int, ToolCall] = {}
    for delta in deltas:
        if isinstance(delta, TextDelta):
            text.append(delta.text)
            continue
        known = calls.get(delta.index, ToolCall("", "", ""))
        calls[delta.index] = ToolCall(delta.id or known.id, delta.name or known.name, known.arguments + delta.arguments)
    return "".join(text), tuple(calls[index] for index in sorted(calls))
