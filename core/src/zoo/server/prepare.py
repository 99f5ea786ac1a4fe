"""From a request as it was sent to sequences for the engine. Runs in threads beside the event loop; touches no
engine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from zoo.chat.tools import ToolFormat, Tools, format_of
from zoo.engine.generation import Request
from zoo.engine.sequence import SamplingParams
from zoo.errors import TemplateError
from zoo.llm import LLM
from zoo.server.errors import APIError
from zoo.server.schema import (
    MAX_SCHEMA_CHARS,
    AssistantMessage,
    ChatRequest,
    CompletionRequest,
    Message,
    NamedTool,
    ResponseFormat,
    ToolMessage,
)

# Variables of a template that only the request's own fields may set.
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's


@dataclass(frozen=True, slots=True)
class Prepared:
    """Sequences of one request. `tools` and `format`: what a tool parser needs; None: answers are text only."""

    requests: list[Request]
    tools: Tools = ()
    format: str | None = None


def prepare_chat(llm: LLM, body: ChatRequest) -> Prepared:
    """Sequences of a chat request: `n` of them. Raises APIError or ZooError for what cannot be done."""
    choice = body.tool_choice or ("auto" if body.tools else "none")
    tools = [] if choice == "none" else [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    form = answer_form(body.response_format, body.grammar)
    format: str | None = None
    keep: Sequence[str] = ()
    if tools and choice == "auto":
        known = tool_format(llm)
        format, keep = (known.name, known.tags) if known else (None, ())
        if form and known:
            raise APIError(
                400, "response_format and tools exclude each other, unless tool_choice is none", param="response_format"
            )
    elif tools:
        if form:
            raise APIError(400, "response_format and a forced tool call exclude each other", param="response_format")
        form, format = {"json_schema": forced_call(tools, choice, many=body.parallel_tool_calls is not False)}, "plain"
    ids, rendered = _render(llm, body, tools)
    params = sampling(
        body,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        **form,
    )
    requests = [llm.request(ids, one, rendered=rendered, keep=keep) for one in repeat(params, body.n or 1)]
    return Prepared(requests, tools, format)


def prepare_completion(llm: LLM, body: CompletionRequest) -> Prepared:
    """Sequences of a completion request: `n` for each prompt, in their order."""
    params = sampling(
        body,
        max_tokens=_DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else max(1, body.max_tokens),
        logprobs=body.logprobs,
        prompt_logprobs=bool(body.echo) and body.logprobs is not None,
        **answer_form(body.response_format, body.grammar),
    )
    requests = []
    for prompt in body.prompts():
        ids = llm.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        requests += [llm.request(ids, one) for one in repeat(params, body.n or 1)]
    return Prepared(requests)


def tool_format(llm: LLM) -> ToolFormat | None:
    """The format in which the model writes tool calls, as far as anybody knows."""
    return format_of(llm.template_source, llm.tool_call_format)


def answer_form(wanted: ResponseFormat | None, grammar: str | None) -> dict[str, Any]:
    """`json_schema` or `grammar` of SamplingParams, as a request asks."""
    if grammar is not None:
        if wanted is not None and wanted.type != "text":
            raise APIError(400, "response_format and grammar are both given", param="grammar")
        return {"grammar": grammar}
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.type == "json_object":
        return {"json_schema": {"type": "object"}}
    assert wanted.json_schema is not None
    return {"json_schema": wanted.json_schema.schema_}


def forced_call(tools: Sequence[dict[str, Any]], choice: str | NamedTool, *, many: bool) -> dict[str, Any]:
    """The schema of a list of calls in the neutral format: of one named tool, or of any of them."""
    if isinstance(choice, NamedTool):
        tools, many = [tool for tool in tools if tool["function"]["name"] == choice.function.name], False
    calls = []
    definitions: dict[str, Any] = {}
    for tool in tools:
        function = tool["function"]
        parameters = dict(function.get("parameters") or {"type": "object"})
        # References in a schema count from its root, so what they name moves there.
        for key in ("$defs", "definitions"):
            definitions.setdefault(key, {}).update(parameters.pop(key, {}))
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema = {
        "type": "array",
        "items": calls[0] if len(calls) == 1 else {"anyOf": calls},
        "minItems": 1,
        "maxItems": 16 if many else 1,
        **{key: value for key, value in definitions.items() if value},
    }
    if len(json.dumps(schema)) > 2 * MAX_SCHEMA_CHARS:
        raise APIError(400, f"the tools' schemas have more than {2 * MAX_SCHEMA_CHARS} characters", param="tools")
    return schema


def sampling(body: ChatRequest | CompletionRequest, **more: Any) -> SamplingParams:
    """What both kinds of requests say about sampling."""
    return SamplingParams(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(0, body.top_k),
        min_p=body.min_p,
        seed=None if body.seed is None else body.seed % (1 << 64),
        stop=body.stop or (),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repeat_penalty=body.repetition_penalty,
        logit_bias=body.biases(),
        ignore_eos=bool(body.ignore_eos),
        **more,
    )


def repeat(params: SamplingParams, count: int) -> list[SamplingParams]:
    """The same parameters for each of `count` answers, their seeds apart."""
    if params.seed is None:
        return [params] * count
    return [replace(params, seed=(params.seed + index) % (1 << 64)) for index in range(count)]


def template_messages(messages: Sequence[Message], *, parsed: bool) -> list[dict[str, Any]]:
    """Messages as chat templates read them. `parsed`: arguments of calls as objects; else as the JSON text they came
    as.

    Raises APIError for arguments that are no JSON object.
    """
    names: dict[str, str] = {}
    out: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        entry: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
        entry["content"] = message.text()
        if message.name is not None:
            entry["name"] = message.name
        if isinstance(message, ToolMessage):
            if message.tool_call_id is not None:
                entry["tool_call_id"] = message.tool_call_id
                entry.setdefault("name", names.get(message.tool_call_id))
        elif isinstance(message, AssistantMessage):
            if message.reasoning_content:
                entry["reasoning_content"] = message.reasoning_content
            if message.tool_calls:
                entry["tool_calls"] = [_call(call, index, parsed) for call in message.tool_calls]
                names |= {call.id: call.function.name for call in message.tool_calls if call.id}
            elif entry["content"] is None:
                entry["content"] = ""
        out.append({key: value for key, value in entry.items() if value is not None or key == "content"})
    return out


def _call(call: Any, index: int, parsed: bool) -> dict[str, Any]:
    arguments: Any = call.function.arguments or "{}"
    if parsed:
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise APIError(
                400, f"messages.{index}.tool_calls: the arguments are no JSON object", param=f"messages.{index}"
            )
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _render(llm: LLM, body: ChatRequest, tools: Tools) -> tuple[list[int], str]:
    variables = dict(body.chat_template_kwargs or {})
    if clash := [name for name in _RESERVED if name in variables]:
        raise APIError(400, f"chat_template_kwargs cannot set {clash[0]}", param="chat_template_kwargs")
    if (effort := body.reasoning_effort) is not None:
        thinks = effort != "none"
        variables = {"enable_thinking": thinks, "thinking": thinks, "reasoning_effort": effort, **variables}
    given = {**variables, **({"tools": tools} if tools else {})}
    ids, rendered = render_messages(llm, body.messages, given)
    # Without a format of its own the model still has to see the tools.
    if tools and render_messages(llm, body.messages, variables)[1] == rendered:
        raise APIError(400, "the chat template of this model has no place for tools", param="tools")
    return ids, rendered


def render_messages(llm: LLM, messages: Sequence[Message], variables: dict[str, Any]) -> tuple[list[int], str]:
    """A conversation by the chat template, as token ids and text.

    Some templates write the arguments of calls as JSON, some as they are: what the first does not take is tried again.
    """
    try:
        return llm.chat_ids(template_messages(messages, parsed=True), **variables)
    except TemplateError:
        if not any(isinstance(message, AssistantMessage) and message.tool_calls for message in messages):
            raise
        return llm.chat_ids(template_messages(messages, parsed=False), **variables)
