"""Tool calls between tags, as models of most families write them. Each class parses one answer, while it streams."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zoo.chat.deltas import Delta, TextDelta, ToolCallDelta, new_call_id
from zoo.chat.scan import JsonValue, first_of, held_back

# A call as JSON whose name comes first, up to its arguments.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\S)')
# Longer than any name: what has no call by then is none.
_LONGEST_HEAD = 1024
_Tools = Sequence[Mapping[str, Any]]


class TaggedCalls:
    """What the formats have in common: text up to an opening tag, then calls.

    A state is a method that consumes part of `_held` and returns whether to go on; False: more text is needed.
    """

    openers: tuple[str, ...]
    closing: str

    def __init__(self) -> None:
        self._held = ""
        self._out: list[Delta] = []
        self._index = -1
        self._opener = ""
        self._value = JsonValue()
        self._state: Callable[[], bool] = self._text

    def push(self, text: str) -> list[Delta]:
        """Take the next text of the answer; return what is certain by now."""
        self._held += text
        while self._held and self._state():
            pass
        return self._taken()

    def flush(self) -> list[Delta]:
        """End the answer. A tag that was cut short is text; arguments that were cut stay as they came."""
        if self._state == self._text and self._held:
            self._say(self._held if self._index < 0 else self._held.rstrip())
        elif self._state == self._begin:
            self._say(self._opener + self._held)
        elif self._state == self._arguments:
            self._argue(self._held)
        self._held = ""
        return self._taken()

    def _begin(self) -> bool:
        """After an opening tag."""
        raise AssertionError("a format says how its calls begin")

    def _end(self) -> bool:
        """After the arguments of a call."""
        raise AssertionError("a format says how its calls end")

    def _new_id(self) -> str:
        return new_call_id()

    def _text(self) -> bool:
        if self._index >= 0:
            self._held = self._held.lstrip()  # between calls and after them
        found = first_of(self._held, self.openers)
        if found is None:
            keep = held_back(self._held, self.openers)
            self._say(self._held[: len(self._held) - keep])
            self._held = self._held[len(self._held) - keep :]
            return False
        place, self._opener = found
        self._say(self._held[:place].rstrip())
        self._held = self._held[place + len(self._opener) :]
        self._state = self._begin
        return True

    def _give_up(self) -> bool:
        """What follows the opening tag is no call: all of it is text."""
        self._say(self._opener)
        self._state = self._text
        self._opener = ""
        return True

    def _call(self, name: str) -> None:
        self._index += 1
        self._value = JsonValue()
        self._out.append(ToolCallDelta(self._index, self._new_id(), name))

    def _arguments(self) -> bool:
        """Pass a JSON value on as it comes; `closing` outside of strings ends one that is not complete."""
        cut = self._held.find(self.closing)
        size = cut if cut >= 0 else len(self._held) - held_back(self._held, (self.closing,))
        part = self._held[:size]
        end = self._value.end(part)
        self._argue(part[:end])
        self._held = self._held[size if end is None else end :]
        if end is not None or (cut >= 0 and not self._value.quoted):
            self._state = self._end
            return True
        if cut < 0:
            return False
        self._value.end(self.closing)  # inside a string it is no tag
        self._argue(self.closing)
        self._held = self._held[len(self.closing) :]
        return True

    def _argue(self, text: str) -> None:
        if text:
            self._out.append(ToolCallDelta(self._index, arguments=text))

    def _say(self, text: str) -> None:
        if text:
            self._out.append(TextDelta(text))

    def _taken(self) -> list[Delta]:
        out, self._out = self._out, []
        return out

    def _skip_to_text(self, *tags: str) -> bool:
        """Drop what stands before one of the tags, and the tag."""
        found = first_of(self._held, tags)
        if found is None:
            keep = held_back(self._held, tags)
            self._held = self._held[len(self._held) - keep :]
            return False
        self._held = self._held[found[0] + len(found[1]) :]
        self._state = self._text
        return True


class JsonCalls(TaggedCalls):
    """Calls as JSON between two tags, one object or a list of `{"name": ..., "arguments": {...}}` (Hermes, Phi-4)."""

    def __init__(self, opening: str, closing: str) -> None:
        self.openers, self.closing = (opening,), closing
        super().__init__()

    def _begin(self) -> bool:
        text = self._held.lstrip().removeprefix("[").lstrip()
        if not text:
            return False
        if text[0] != "{":
            return self._give_up()
        if head := _HEAD.match(text):
            self._call(json.loads(head[1]))
            self._held, self._state = text[head.end() :], self._arguments
            return True
        end = JsonValue().end(text)
        if end is None:
            return self._give_up() if self.closing in text else False
        self._held = text[end:]
        self._whole(text[:end])
        self._state = self._end
        return True

    def _whole(self, text: str) -> None:
        """A call whose name does not come first."""
        try:
            call = json.loads(text)
            name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
        except (ValueError, KeyError):
            self._say(self._opener + text)
            return
        self._call(str(name))
        self._argue(arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))

    def _end(self) -> bool:
        """The rest of an object; then the next one of a list, or the closing tag."""
        self._held = self._held.lstrip(" \t\r\n}")
        if self._held.startswith(","):
            rest = self._held[1:].lstrip()
            if rest.startswith("{"):
                self._held, self._state = rest, self._begin
                return True
            # Another key of the object, such as an id.
            if not rest:
                return False
        return self._skip_to_text(self.closing)


class HermesCalls(JsonCalls):
    """`<tool_call>` with JSON in it, or, as Qwen3-Coder writes, with `<function=NAME>` and `<parameter=KEY>`."""

    def __init__(self, tools: _Tools = ()) -> None:
        super().__init__("<tool_call>", "</tool_call>")
        self._schemas = {tool.get("function", {}).get("name"): tool.get("function", {}) for tool in tools}

    def _begin(self) -> bool:
        text = self._held.lstrip()
        function = "<function="
        if function.startswith(text[: len(function)]) and len(text) < len(function):
            return False
        return self._xml(text) if text.startswith(function) else super()._begin()

    def _xml(self, text: str) -> bool:
        end = text.find("</function>")
        if end < 0:
            return False
        name = text[len("<function=") :].partition(">")[0].strip()
        self._call(name)
        pairs = re.findall(r"<parameter=([^>]*)>\n?(.*?)\n?</parameter>", text[:end], re.DOTALL)
        self._argue(json.dumps({key: self._typed(name, key, value) for key, value in pairs}, ensure_ascii=False))
        self._held, self._state = text[end:], self._end
        return True

    def _typed(self, function: str, key: str, text: str) -> Any:
        """A value by the tool's schema: strings stay as they are, anything else is JSON where it can be."""
        parameters = self._schemas.get(function, {}).get("parameters") or {}
        kind = parameters.get("properties", {}).get(key, {}).get("type")
        if kind == "string":
            return text
        try:
            return json.loads(text)
        except ValueError:
            return text

    def flush(self) -> list[Delta]:
        """End the answer. A call in tags of parameters is given only as a whole, so one that was cut keeps its name."""
        if self._state == self._begin and (found := re.match(r"\s*<function=([^>]+)>", self._held)):
            self._call(found[1].strip())
            self._held, self._state = "", self._end
        return super().flush()


class DeepSeekCalls(TaggedCalls):
    """V3 and R1: `function`, separator, name, arguments in a fence. V3.1: name, separator, arguments."""

    openers = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
    closing = "<｜tool▁call▁end｜>"
    separator = "<｜tool▁sep｜>"
    last = "<｜tool▁calls▁end｜>"

    def _begin(self) -> bool:
        text = self._held.lstrip()
        if self._opener == self.openers[0]:
            if text.startswith(self.openers[1]):
                self._opener, self._held = self.openers[1], text[len(self.openers[1]) :]
                return True
            return False if self.openers[1].startswith(text) else self._give_up()
        first, found, rest = text.partition(self.separator)
        if not found:
            return self._give_up() if len(text) > _LONGEST_HEAD or self.closing in text else False
        if not rest.strip():
            return False
        if rest.lstrip().startswith("{"):  # V3.1
            name, arguments = first, rest.lstrip()
        else:
            name, line, fenced = rest.partition("\n")
            arguments = fenced.lstrip().removeprefix("```json").lstrip()
            if not line or not arguments or "```json".startswith(arguments):
                return self._give_up() if self.closing in rest else False
        self._call(name.strip())
        self._held, self._state = arguments, self._arguments
        return True

    def _end(self) -> bool:
        if not self._skip_to_text(self.closing):
            return False
        self._state = self._between
        return True

    def _between(self) -> bool:
        text = self._held.lstrip()
        if any(tag.startswith(text) and tag != text for tag in (self.openers[1], self.last)):
            return False
        self._held, self._state = text.removeprefix(self.last), self._text
        return True


class MistralCalls(TaggedCalls):
    """`[TOOL_CALLS]` and a list of JSON calls (v3), or a name and `[ARGS]`, with an id between them (Small 3.2)."""

    openers = ("[TOOL_CALLS]",)
    closing = "[TOOL_CALLS]"
    marks = ("[ARGS]", "[CALL_ID]")

    def _new_id(self) -> str:
        # The template refuses any other shape.
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))

    def _begin(self) -> bool:
        text = self._held.lstrip()
        if text.startswith("["):
            text = text[1:].lstrip()
        if not text:
            return False
        if text.startswith("{"):
            head = _HEAD.match(text)
            if head is None:
                return self._give_up() if len(text) > _LONGEST_HEAD else False
            self._call(json.loads(head[1]))
            self._held, self._state = text[head.end() :], self._arguments
            return True
        name, found, arguments = text.partition("[ARGS]")
        if not found:
            return self._give_up() if len(text) > _LONGEST_HEAD else False
        name, _, call_id = name.partition("[CALL_ID]")
        self._call(name.strip())
        if call_id.strip():
            self._out[-1] = ToolCallDelta(self._index, call_id.strip(), name.strip())
        self._held, self._state = arguments, self._arguments
        return True

    def _end(self) -> bool:
        """In a list: the rest of the object, then `, {` or `]`."""
        if re.match(r"\s*,\s*\"", self._held):  # another key of the object: the id
            end = self._held.find("}")
            if end < 0:
                return False
            self._held = self._held[end:]
        text = self._held.lstrip(" \t\r\n}")
        if text.startswith(","):
            rest = text[1:].lstrip()
            if not rest:
                return False
            if rest.startswith("{"):
                self._held, self._state = rest, self._begin
                return True
        if not text:
            return False
        self._held, self._state = text.removeprefix("]"), self._text
        return True


class LlamaCalls(TaggedCalls):
    """Llama 3: an answer that is one JSON call and nothing else, or built-in tools after `<|python_tag|>`.

    JSON is a call only if it names a tool of the request: such an answer may be meant as it is.
    """

    openers = ("<|python_tag|>",)
    closing = "<|eom_id|>"
    _builtin = re.compile(r"\s*([\w.]+)\.call\((.*)\)\s*$", re.DOTALL)

    def __init__(self, tools: _Tools = ()) -> None:
        self._names = {tool.get("function", {}).get("name") for tool in tools}
        super().__init__()
        self._state = self._start

    def _start(self) -> bool:
        text = self._held.lstrip()
        if not text:
            return False
        if text[0] != "{":
            self._state = self._text
            return True
        return self._json(text)

    def _json(self, text: str) -> bool:
        head = _HEAD.match(text)
        if head is not None and (not self._names or json.loads(head[1]) in self._names):
            self._call(json.loads(head[1]))
            self._held, self._state = text[head.end() :], self._arguments
            return True
        if head is None and len(text) <= _LONGEST_HEAD and JsonValue().end(text) is None:
            return False
        self._state = self._text
        return True

    def _begin(self) -> bool:
        text = self._held.lstrip()
        return self._json(text) if text.startswith("{") else False

    def _end(self) -> bool:
        text = self._held.lstrip(" \t\r\n}").removeprefix(self.closing)
        if not text or self.closing.startswith(text):
            return False
        self._held = text.removeprefix(";").lstrip()
        self._state = self._start if text.startswith(";") else self._text
        return True

    def flush(self) -> list[Delta]:
        """End the answer: a built-in tool is known by its end."""
        if self._state == self._begin and (found := self._builtin.match(self._held)):
            pairs = re.findall(r'(\w+)\s*=\s*("(?:[^"\\]|\\.)*"|[^,\s]+)', found[2])
            self._call(found[1])
            self._argue("{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in pairs) + "}")
            self._held, self._state = "", self._text
        elif self._state == self._start:
            self._state = self._text
        return super().flush()
