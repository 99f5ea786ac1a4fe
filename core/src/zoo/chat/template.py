"""Chat templates: from messages to the text of a prompt, in segments that say where control tokens may be read.

The template comes with the model and the messages from users; neither is trusted. What a template may do is in
`sandbox.py` and `limits.py`; how control spellings in messages stay text is in `shield.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import CodeType, TracebackType
from typing import Any

import jinja2
from jinja2 import nodes

from zoo.chat.limits import LimitExceeded, Limits, Meter
from zoo.chat.sandbox import PromptEnvironment
from zoo.chat.shield import Level, Shield, Spellings
from zoo.errors import TemplateError

_FORBIDDEN = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block, nodes.EvalContextModifier)
_LOOKING = frozenset(
    ("count", "endswith", "find", "index", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind")
).union(("rindex", "rpartition", "rsplit", "rstrip", "split", "startswith", "strip", "trim"))
"""Filters and methods whose arguments are looked for in a text."""
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_LONGEST_SPELLING = 256
_LONGEST_MESSAGE = 1000


class ChatTemplate:
    """A chat template of one model, compiled once; `render` may run in several threads.

    `text` is the jinja source. `control_tokens` are the spellings that only `parse_special` may match. `name` is how
    errors call the template. `reasoning_tags` are further tags that the template may see in the content of assistant
    messages, besides those that its source looks for.

    Reasoning tags: the content of an *assistant* message came from the model, and templates cut it at `</think>`. So
    the control spellings that the source compares, searches or splits text with stay visible there (never the bos and
    eos token); those that the template leaves in the prompt are control tokens again, as when the model wrote them.
    Everywhere else (users, tools, system, tool calls, separate reasoning fields) every control spelling is text.

    A template that writes tokens around a value (`'<|' + role + '|>'`) trusts that value when it is a plain word: let
    only known roles in.

    Raises TemplateError when the template does not compile, uses tags or filters that do not exist here, or is larger
    than `limits` allow.
    """

    def __init__(
        self,
        text: str,
        *,
        bos_token: str,
        eos_token: str,
        control_tokens: Collection[str],
        name: str = "chat template",
        reasoning_tags: Collection[str] = (),
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self.source = text
        self._limits = limits or Limits()
        if len(text) > self._limits.template_chars:
            raise TemplateError(
                f"{name}: {len(text)} characters, more than the {self._limits.template_chars} allowed",
                remedy="give another template",
            )
        self.hash = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        """The sha256 of the source, in hex."""
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        too_long = next((token for token in control_tokens if len(token) > _LONGEST_SPELLING), None)
        if too_long is not None:
            raise TemplateError(
                f"{name}: a control token of {len(too_long)} characters, more than {_LONGEST_SPELLING}",
                remedy="the vocabulary is damaged: fetch the model again",
            )
        try:
            self._code, literals, inspected = self._compile(text)
            self._spellings = Spellings(
                control_tokens, taken=text + literals, inspected=inspected - set(control_tokens)
            )
        except Exception as error:
            raise self._explain(error, Shield(Spellings((), taken=""), Level.WHOLE), None) from error
        shown = {token for token in control_tokens if any(token in looked_for for looked_for in inspected)}
        self._visible = frozenset((shown | set(reasoning_tags)) & self._spellings.all) - {bos_token, eos_token}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> list[tuple[str, bool]]:
        """Render a conversation into segments (text, parse_special); joined, they are the prompt.

        `messages` are mappings with at least a `role`; all values are JSON values. `kwargs` are further variables of
        the template (`enable_thinking`, ...); they cannot replace its own. False marks control spellings that came
        from the conversation: encode those segments as plain text. Raises TemplateError when the conversation is not
        of that form, when the template refuses it, fails, or needs more than its limits.
        """
        reserved = {"messages", "namespace", "range", "dict", "raise_exception", "strftime_now", *self._tokens}
        if clash := sorted(reserved & kwargs.keys()):
            raise TemplateError(
                f"{self.name}: {', '.join(clash)} cannot be set as a template variable",
                remedy="remove it from the template's arguments",
            )
        given = {"messages": messages, "tools": tools, "documents": documents}
        for name, value in given.items():
            if value is not None or name == "messages":
                self._check_list(name, value)
        for index, message in enumerate(messages):
            if not isinstance(message.get("role"), str):
                raise TemplateError(f"messages[{index}] has no role", remedy='add a "role" of type string')
        given |= {"messages": [_with_reasoning(message) for message in messages], **kwargs}
        variables = {"add_generation_prompt": add_generation_prompt, **self._tokens}
        now = datetime.now()
        shield, text = self._run(given, variables, now, Level.WHOLE)
        if shield.partial:
            prompt = shield.reveal(text)
            for level in (Level.STARTS, Level.EDGES):
                with suppress(TemplateError):  # as a different text: the template has to see what this level hides
                    closer, same = self._run(given, variables, now, level)
                    if closer.reveal(same) == prompt:
                        return closer.segments(same)
        return shield.segments(text)

    def _check_list(self, name: str, value: object) -> None:
        if not isinstance(value, (list, tuple)):
            raise TemplateError(f"{name} is a {type(value).__name__}, not a list", remedy="give a list of objects")
        for index, item in enumerate(value):
            if not isinstance(item, Mapping):
                raise TemplateError(
                    f"{name}[{index}] is a {type(item).__name__}, not an object", remedy="give an object"
                )

    def _run(self, given: dict[str, Any], variables: dict[str, Any], now: datetime, level: Level) -> tuple[Shield, str]:
        shield = Shield(self._spellings, level)
        template: jinja2.Template | None = None
        try:
            copier = _Copier(shield, self._limits.nesting)
            messages = given["messages"]
            variables = variables | {
                name: copier.copy(value, name) for name, value in given.items() if name != "messages"
            }
            variables["messages"] = [
                copier.message(message, f"messages[{index}]", self._visible) for index, message in enumerate(messages)
            ]
            limits = self._limits.scaled(nodes=copier.nodes, chars=copier.chars, messages=len(messages))
            environment = PromptEnvironment(Meter(limits), shield, now)
            template = jinja2.Template.from_code(environment, self._code, environment.make_globals(None))
            parts = []
            left = limits.output_chars
            for part in template.root_render_func(template.new_context(variables)):
                left -= len(part)
                if left < 0:
                    raise LimitExceeded(f"its output is longer than {limits.output_chars} characters")
                parts.append(part)
            return shield, "".join(parts)
        except Exception as error:  # the template is foreign code: whatever it raises is its refusal
            raise self._explain(error, shield, template) from error

    def _compile(self, text: str) -> tuple[CodeType, str, set[str]]:
        shield = Shield(Spellings((), taken=""), Level.WHOLE)
        environment = PromptEnvironment(Meter(self._limits), shield, datetime.now())
        tree = environment.parse(text)
        for node in tree.find_all(_FORBIDDEN):
            raise jinja2.TemplateSyntaxError(f"the tag for {type(node).__name__} is not available", node.lineno)
        literals = "".join(node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str))
        return environment.compile(tree), literals, _inspected(tree)

    def _explain(self, error: Exception, shield: Shield, template: jinja2.Template | None) -> TemplateError:
        if isinstance(error, TemplateError):
            return error
        line = None if template is None else _line(error.__traceback__, template)
        message, remedy = shield.reveal(str(error)), ""
        if isinstance(error, jinja2.TemplateSyntaxError):
            message, line = error.message or "", error.lineno
        elif isinstance(error, LimitExceeded):
            remedy = "give another template, or a shorter conversation"
        elif isinstance(error, (MemoryError, RecursionError)):
            message, remedy = "it nests too deeply", "give a simpler template"
        elif isinstance(error, SyntaxError):  # of Python's compiler; its line numbers are not the template's
            message = f"it cannot be compiled: {error.msg}"
        elif not isinstance(error, jinja2.TemplateError):
            message = f"{type(error).__name__}: {message}"
        if len(message) > _LONGEST_MESSAGE:
            message = message[:_LONGEST_MESSAGE] + "…"
        return TemplateError(f"{self.name}{f', line {line}' if line else ''}: {message}", remedy=remedy)


@dataclass
class _Copier:
    """Copies a conversation into plain JSON types, hides control spellings in it, and counts what is there."""

    shield: Shield
    nesting: int
    nodes: int = 0
    chars: int = 0

    def message(self, message: Mapping[str, Any], path: str, visible: Collection[str]) -> dict[str, Any]:
        """Copy one message; `visible` tags stay in the content of an assistant's."""
        if message["role"] != "assistant" or "content" not in message:
            return self._object(message, path, 0)
        content = self.copy(message["content"], f"{path}.content", 1, visible)
        return self._object({**message, "content": None}, path, 0) | {"content": content}

    def copy(self, value: Any, path: str, depth: int = 0, visible: Collection[str] = ()) -> Any:
        """Copy any JSON value; `path` says where it stands."""
        self.nodes += 1
        if depth > self.nesting:
            raise TemplateError(f"{path} is nested more than {self.nesting} deep", remedy="flatten it")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            self.chars += len(value)
            return self.shield.hide(str.__str__(value), visible)
        if isinstance(value, int):
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, Mapping):
            return self._object(value, path, depth, visible)
        if isinstance(value, (list, tuple)):
            items = [self.copy(item, f"{path}[{index}]", depth + 1, visible) for index, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        raise TemplateError(
            f"{path} is a {type(value).__name__}, which is not a JSON value",
            remedy="give strings, numbers, booleans, null, lists and objects only",
        )

    def _object(self, value: Mapping[Any, Any], path: str, depth: int, visible: Collection[str] = ()) -> dict[str, Any]:
        copied = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise TemplateError(f"{path} has the key {key!r}, which is not a string", remedy="use string keys")
            self.chars += len(key)
            copied[self.shield.hide(str.__str__(key))] = self.copy(item, f"{path}.{key}", depth + 1, visible)
        return copied


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the reasoning of a message the names that templates read it by, as transformers does."""
    reasoning = next((message[key] for key in _REASONING_FIELDS if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _inspected(tree: nodes.Template) -> set[str]:
    """Return the string constants that a template compares, searches or splits text with."""
    places: list[nodes.Node] = list(tree.find_all((nodes.Compare, nodes.Test)))
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _LOOKING:
            places += [*call.args, *call.kwargs]
    for used in tree.find_all(nodes.Filter):
        if used.name in _LOOKING:
            places += [*used.args, *used.kwargs]
    found = {place for place in places if isinstance(place, nodes.Const)}
    found |= {constant for place in places for constant in place.find_all(nodes.Const)}
    return {constant.value for constant in found if isinstance(constant.value, str) and constant.value.strip()}


def _line(traceback: TracebackType | None, template: jinja2.Template) -> int | None:
    """Return the line of the template where an error left it."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == template.root_render_func.__code__.co_filename:
            line = template.get_corresponding_lineno(traceback.tb_lineno)
        traceback = traceback.tb_next
    return line
