"""What requests may say. Null counts as absent; a field that is not here is refused by name.

Three classes of fields: honoured; accepted without effect (`_Ignored`, nothing in them can change an answer); refused,
which is every other name. `docs/reference/server.md` lists them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_BIASES = 1024
MAX_TOOLS = 128
MAX_SCHEMA_CHARS = 65_536
MAX_TOP_LOGPROBS = 20


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _small(value: Any) -> Any:
    if len(json.dumps(value)) > MAX_SCHEMA_CHARS:
        raise ValueError(f"it has more than {MAX_SCHEMA_CHARS} characters")
    return value


def _given(field: str, kind: str) -> dict[str, Any]:
    """The JSON schema of an object in which `field` is present and not null."""
    return {"required": [field], "properties": {field: {"type": kind}}}


StopText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[list[StopText], BeforeValidator(_listed), Field(max_length=MAX_STOPS)]
Schema = Annotated[dict[str, Any], AfterValidator(_small)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31, strict=True)]
ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Ignored(_Model):
    """Fields that are accepted and have no effect."""

    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    prediction: Any = None


class StreamOptions(_Model):
    """`include_usage`: one more chunk at the end, with the usage."""

    include_usage: bool | None = None
    include_obfuscation: Any = None


class _Sampling(_Ignored):
    """Fields that chat and completions share."""

    model: Annotated[str, StringConstraints(max_length=1024)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    stop: Stops | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    grammar: Annotated[str, StringConstraints(min_length=1, max_length=MAX_SCHEMA_CHARS)] | None = None

    def biases(self) -> dict[int, float]:
        """Logit bias by token id. Raises ValueError for a key that is no id."""
        found = {}
        for key, value in (self.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise ValueError(f"logit_bias has the key {key[:40]!r}; keys are token ids")
            found[int(key)] = value
        return found


class TextPart(_Model):
    """A part of a message: text, or the refusal in an assistant's message."""

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class FunctionCall(BaseModel):
    """A call as an assistant's message has it: `arguments` is JSON text."""

    name: ToolName
    arguments: str


class MessageToolCall(BaseModel):
    """A tool call in an assistant's message."""

    id: Annotated[str, StringConstraints(max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class _Message(_Model):
    role: str
    content: str | list[TextPart] | None = None
    name: Annotated[str, StringConstraints(max_length=256)] | None = None

    def text(self) -> str | None:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text or part.refusal or "" for part in self.content)
        return self.content


class PromptMessage(_Message):
    """What a system or a user says; `developer` is another word for system."""

    role: Literal["system", "developer", "user"]
    content: str | list[TextPart]


class ToolMessage(_Message):
    """The result of a tool call."""

    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: Annotated[str, StringConstraints(max_length=256)] | None = None


class AssistantMessage(_Message):
    """An answer, as it came from here or elsewhere: what else is in it (refusal, annotations, audio) does not
    matter.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    role: Literal["assistant"]
    reasoning_content: str | None = None
    tool_calls: list[MessageToolCall] | None = None


Message = Annotated[PromptMessage | ToolMessage | AssistantMessage, Field(discriminator="role")]


class Function(_Model):
    """A tool: `parameters` is a JSON schema."""

    name: ToolName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(_Model):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(_Model):
    """The name of one tool."""

    name: ToolName


class NamedTool(_Model):
    """The choice of one tool."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Model):
    """The schema of an answer."""

    name: Annotated[str, StringConstraints(max_length=256)] | None = None
    description: str | None = None
    schema_: Schema | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Model):
    """The form of an answer: any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise ValueError("json_schema.schema is missing")
        return self


class ChatRequest(_Sampling):
    """A request for the next message of a conversation."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: Schema | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is not among the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice is required, but there are no tools")
        self.biases()
        return self


class CompletionRequest(_Sampling):
    """A request for the continuation of one prompt or several: texts or token ids."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[list[TokenId]], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: Literal[1] | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _consistent(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0; without echo use 1 or more")
        self.biases()
        return self

    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class TokenizeRequest(_Model):
    """A text, or a conversation as the chat template writes it."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_given("prompt", "string"), _given("messages", "array")]})

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages, one of them")
        return self


class DetokenizeRequest(_Model):
    """Token ids."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20)]


class ErrorDetail(BaseModel):
    """`param`: the field that is wrong; `code`: a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """What every answer but a good one is."""

    error: ErrorDetail
