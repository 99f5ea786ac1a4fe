"""From pieces of the engine to the objects that OpenAI clients read, streamed or whole."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from zoo.chat.tools import TextDelta, ToolCallDelta, collect, parser_for
from zoo.engine.generation import Request
from zoo.engine.result import Piece
from zoo.engine.sequence import TokenLogprob
from zoo.llm import LLM
from zoo.server.errors import APIError, event, from_exception
from zoo.server.prepare import Prepared
from zoo.server.schema import ChatRequest, CompletionRequest
from zoo.server.worker import Job
from zoo.tokenizer import Tokenizer


class Head:
    """What all objects of one answer share."""

    def __init__(self, prefix: str, kind: str, model: str) -> None:
        self._fields = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._kind = kind

    def object(self, choices: Sequence[dict[str, Any]], *, chunk: bool = False, **more: Any) -> dict[str, Any]:
        """One object with these choices."""
        kind = f"{self._kind}.chunk" if chunk and self._kind == "chat.completion" else self._kind
        return {**self._fields, "object": kind, "choices": list(choices), **more}


def usage(requests: Sequence[Request], prompts: int) -> dict[str, Any]:
    """Tokens of a request: each of its `prompts` counts once, whatever `n` was."""
    each = len(requests) // prompts
    prompt = sum(len(request.sequence.prompt_token_ids) for request in requests[::each])
    cached = sum(request.sequence.num_cached_tokens or 0 for request in requests[::each])
    completion = sum(len(request.sequence.output_token_ids) for request in requests)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class ChatChoice:
    """One answer of a chat: takes pieces, gives the `delta` objects of its chunks."""

    def __init__(self, prepared: Prepared, *, parallel: bool) -> None:
        self._parser = parser_for(prepared.format, prepared.tools) if prepared.format else None
        self._parallel = parallel
        self._calls = False
        self.finish_reason: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the answer is whole."""
        return self.finish_reason is not None

    def take(self, piece: Piece) -> list[dict[str, Any]]:
        """Deltas of a piece; sets `finish_reason` at the end."""
        deltas: list[dict[str, Any]] = [{"reasoning_content": piece.reasoning}] if piece.reasoning else []
        if self._parser is None:
            deltas += [{"content": piece.text}] if piece.text else []
        else:
            found = [*self._parser.push(piece.text), *(self._parser.flush() if piece.finish_reason else ())]
            for delta in found:
                if isinstance(delta, TextDelta):
                    deltas.append({"content": delta.text})
                elif delta.index and not self._parallel:
                    self.finish_reason = "tool_calls"
                    return deltas
                else:
                    self._calls = True
                    deltas.append({"tool_calls": [_call(delta)]})
        if piece.finish_reason is not None:
            self.finish_reason = "tool_calls" if self._calls and piece.finish_reason == "stop" else piece.finish_reason
        return deltas


def _call(delta: ToolCallDelta) -> dict[str, Any]:
    if delta.id is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}


async def chat_chunks(llm: LLM, job: Job, prepared: Prepared, body: ChatRequest, head: Head) -> AsyncIterator[Any]:
    """The chunks of a streamed chat answer."""
    choices = [ChatChoice(prepared, parallel=body.parallel_tool_calls is not False) for _ in job.requests]
    more: dict[str, Any] = {"usage": None} if _wants_usage(body) else {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return head.object([choice], chunk=True, **more)

    for index in range(len(choices)):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for index, piece in job.pieces():
        choice = choices[index]
        if choice.ended:
            continue
        deltas = choice.take(piece)
        logprobs = chat_logprobs(llm.tokenizer, piece.logprobs) if body.logprobs and piece.logprobs else None
        for delta in deltas or ([{}] if logprobs else []):
            yield chunk(index, delta, logprobs=logprobs)
            logprobs = None
        if choice.finish_reason is not None:
            yield chunk(index, {}, choice.finish_reason)
        if all(choice.ended for choice in choices):
            break
    if more:
        yield head.object([], chunk=True, usage=usage(job.requests, 1))


async def chat_answer(llm: LLM, job: Job, prepared: Prepared, body: ChatRequest, head: Head) -> dict[str, Any]:
    """A whole chat answer."""
    choices = [ChatChoice(prepared, parallel=body.parallel_tool_calls is not False) for _ in job.requests]
    deltas: list[list[dict[str, Any]]] = [[] for _ in choices]
    tokens: list[list[TokenLogprob]] = [[] for _ in choices]
    async for index, piece in job.pieces():
        if not choices[index].ended:
            deltas[index] += choices[index].take(piece)
            tokens[index] += piece.logprobs
        if all(choice.ended for choice in choices):
            break
    return head.object(
        [
            {
                "index": index,
                "message": _message(deltas[index]),
                "logprobs": chat_logprobs(llm.tokenizer, tokens[index]) if body.logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ],
        usage=usage(job.requests, 1),
    )


def _message(deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The message that deltas join to."""
    content = "".join(delta.get("content", "") for delta in deltas)
    reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
    calls = collect(
        [
            ToolCallDelta(
                call["index"], call.get("id"), call["function"].get("name"), call["function"].get("arguments", "")
            )
            for delta in deltas
            for call in delta.get("tool_calls", ())
        ]
    )[1]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content if content or not calls else None,
        "refusal": None,
    }
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat choice."""

    def entry(id: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.piece(id)
        return {"token": data.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(data)}

    content = [
        {**entry(token.token_id, token.logprob), "top_logprobs": [entry(id, value) for id, value in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


async def completion_chunks(llm: LLM, job: Job, body: CompletionRequest, head: Head) -> AsyncIterator[Any]:
    """The chunks of a streamed completion."""
    more: dict[str, Any] = {"usage": None} if _wants_usage(body) else {}
    offsets = [0] * len(job.requests)
    begun = [False] * len(job.requests)
    async for index, piece in job.pieces():
        request = job.requests[index]
        text = "" if body.max_tokens == 0 else piece.text
        logprobs = None
        if body.logprobs is not None:
            tokens = [] if body.max_tokens == 0 else list(piece.logprobs)
            if body.echo and not begun[index]:
                logprobs, offsets[index] = completion_logprobs(llm.tokenizer, tokens, 0, request)
            else:
                logprobs, offsets[index] = completion_logprobs(llm.tokenizer, tokens, offsets[index])
        if body.echo and not begun[index]:
            text = prompt_text(llm, request) + text
        begun[index] = True
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": piece.finish_reason}
        yield head.object([choice], **more)
    if more:
        yield head.object([], usage=completion_usage(job, body))


async def completion_answer(llm: LLM, job: Job, body: CompletionRequest, head: Head) -> dict[str, Any]:
    """A whole completion."""
    texts, reasons = [""] * len(job.requests), [""] * len(job.requests)
    tokens: list[list[TokenLogprob]] = [[] for _ in texts]
    async for index, piece in job.pieces():
        if body.max_tokens != 0:
            texts[index] += piece.text
            tokens[index] += piece.logprobs
        reasons[index] = piece.finish_reason or ""
    choices = []
    for index, request in enumerate(job.requests):
        logprobs = None
        if body.logprobs is not None:
            logprobs, _ = completion_logprobs(llm.tokenizer, tokens[index], 0, request if body.echo else None)
        choices.append(
            {
                "index": index,
                "text": (prompt_text(llm, request) if body.echo else "") + texts[index],
                "logprobs": logprobs,
                "finish_reason": reasons[index] if body.max_tokens != 0 else "length",
            }
        )
    return head.object(choices, usage=completion_usage(job, body))


def completion_usage(job: Job, body: CompletionRequest) -> dict[str, Any]:
    """As `usage`; a request for no tokens gets none."""
    counted = usage(job.requests, len(body.prompts()))
    if body.max_tokens == 0:
        counted |= {"completion_tokens": 0, "total_tokens": counted["prompt_tokens"]}
    return counted


def prompt_text(llm: LLM, request: Request) -> str:
    """What `echo` puts before the completion."""
    return llm.tokenizer.decode(request.sequence.prompt_token_ids)


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[TokenLogprob], offset: int, echoed: Request | None = None
) -> tuple[dict[str, Any], int]:
    """`logprobs` of a completion choice, and the offset in characters after it. `echoed`: the prompt's come first."""
    entries: list[tuple[int, TokenLogprob | None]] = [(token.token_id, token) for token in tokens]
    if echoed is not None:
        prompt = echoed.sequence.prompt_token_ids
        scored = [None, *echoed.sequence.prompt_logprobs]
        entries = [*zip(prompt, scored, strict=True), *entries]
    out: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for id, token in entries:
        text = tokenizer.piece(id).decode("utf-8", "replace")
        out["tokens"].append(text)
        out["token_logprobs"].append(None if token is None else _finite(token.logprob))
        top: dict[str, float] | None = None
        if token is not None:
            top = {}
            for other, value in token.top:  # two ids may have one spelling: the likelier one counts
                top.setdefault(tokenizer.piece(other).decode("utf-8", "replace"), _finite(value))
            top.setdefault(text, _finite(token.logprob))
        out["top_logprobs"].append(top)
        out["text_offset"].append(offset)
        offset += len(text)
    return out, offset


def _finite(logprob: float) -> float:
    return max(logprob, -9999.0)  # JSON has no infinity; OpenAI's word for "out of the question"


def _wants_usage(body: ChatRequest | CompletionRequest) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


async def sse(chunks: AsyncIterator[Any], job: Job) -> AsyncIterator[bytes]:
    """Server-sent events of chunks. An error in the middle is an event of its own: the status has been sent."""
    try:
        async for chunk in chunks:
            yield event(chunk)
        yield b"data: [DONE]\n\n"
    except APIError as error:
        yield event(error.body())
    except Exception as error:
        yield event(from_exception(error).body())
    finally:
        job.close()
