"""The application: routes, and what goes around them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from zoo import __version__
from zoo.engine.generation import Request as EngineRequest
from zoo.llm import LLM
from zoo.server import answers
from zoo.server.docs import docs_page
from zoo.server.errors import APIError, from_exception, from_validation
from zoo.server.guard import Access, Guard, Limits
from zoo.server.metrics import Metrics
from zoo.server.page import load_page
from zoo.server.prepare import prepare_chat, prepare_completion, render_messages
from zoo.server.schema import ChatRequest, CompletionRequest, DetokenizeRequest, ErrorAnswer, TokenizeRequest
from zoo.server.worker import Job, Worker

T = TypeVar("T")
_PREPARING_THREADS = 2
_REFUSALS: dict[int | str, str] = {"4XX": "what is wrong with the request", "5XX": "what is wrong here"}


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`served_name`: the id of the model in answers; None: the name of its file or directory. `strict_model`: requests
    for another name are a 404. `max_queue`: sequences that may wait beside those that run."""

    served_name: str | None = None
    strict_model: bool = False
    max_queue: int = 256
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)


class Service:
    """One model behind the routes."""

    def __init__(self, load: Callable[[], LLM], path: str, options: ServerOptions) -> None:
        self.options = options
        self.model_id = options.served_name or Path(path).name or path
        self.metrics = Metrics()
        self.worker = Worker(load, max_queue=options.max_queue, metrics=self.metrics)
        self.created = int(time.time())
        self._pool = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="zoo-prepare")

    async def prepare(self, function: Callable[..., T], *args: Any) -> T:
        """Run what is slow but needs no engine (templates, tokenizer, grammars) beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def check_model(self, name: str | None) -> None:
        """Raise APIError (404) for another model's name, where names matter."""
        if self.options.strict_model and name not in (None, self.model_id):
            raise APIError(
                404, f"there is no model {name!r}; {self.model_id!r} is served", param="model", code="model_not_found"
            )

    async def close(self) -> None:
        """Abort what runs and give the model back."""
        await self.worker.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for work, but not longer than the client does. Raises APIError (499) when it has gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise APIError(499, "the client is gone")
        return task.result()
    finally:
        task.cancel()
        watch.cancel()


def create_app(service: Service) -> FastAPI:
    """The application of a service; the model is loaded when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await service.close()

    app = FastAPI(
        title="zoo",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's own pages load their scripts from the network
        redoc_url=None,
        responses={status: {"model": ErrorAnswer, "description": words} for status, words in _REFUSALS.items()},
    )
    _add_errors(app)
    _add_openai(app, service)
    _add_rest(app, service)
    paths = frozenset(path for route in app.routes if (path := getattr(route, "path", None)) and "{" not in path)
    options = service.options
    app.add_middleware(Guard, access=options.access, limits=options.limits, metrics=service.metrics, paths=paths)
    return app


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """The next message of a conversation."""
        service.check_model(body.model)
        llm = service.worker.llm
        service.worker.check_room(body.n or 1)
        prepared = await service.prepare(prepare_chat, llm, body)
        head = answers.Head("chatcmpl", "chat.completion", service.model_id)
        job = service.worker.submit(prepared.requests)
        if body.stream:
            return _stream(request, answers.chat_chunks(llm, job, prepared, body, head), job)
        return await _whole(request, answers.chat_answer(llm, job, prepared, body, head), job)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """The continuation of prompts."""
        service.check_model(body.model)
        llm = service.worker.llm
        service.worker.check_room((body.n or 1) * len(body.prompts()))
        prepared = await service.prepare(prepare_completion, llm, body)
        head = answers.Head("cmpl", "text_completion", service.model_id)
        job = service.worker.submit(prepared.requests)
        if body.stream:
            return _stream(request, answers.completion_chunks(llm, job, body, head), job)
        return await _whole(request, answers.completion_answer(llm, job, body, head), job)

    def model() -> dict[str, Any]:
        return {
            "id": service.model_id,
            "object": "model",
            "created": service.created,
            "owned_by": "zoo",
            "max_model_len": service.worker.llm.context,
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [model()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """The same by its id."""
        if name != service.model_id:
            raise APIError(404, f"there is no model {name!r}", param="model", code="model_not_found")
        return model()


def _stream(request: Request, chunks: AsyncIterator[Any], job: Job) -> Response:
    async def body() -> AsyncIterator[bytes]:
        try:
            async for event in answers.sse(chunks, job):
                yield event
        finally:
            job.close()
            _note(request, job.requests)

    return StreamingResponse(body(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _whole(request: Request, answer: Awaitable[dict[str, Any]], job: Job) -> Response:
    try:
        return JSONResponse(await unless_gone(request, answer))
    finally:
        job.close()
        _note(request, job.requests)


def _note(request: Request, requests: tuple[EngineRequest, ...]) -> None:
    """Counts for the line in the log. The job is closed: what has not ended is aborted."""
    sequences = [one.sequence for one in requests]
    request.scope["state"]["notes"] |= {
        "prompt": sum(len(one.prompt_token_ids) for one in sequences),
        "cached": sum(one.num_cached_tokens or 0 for one in sequences),
        "completion": sum(len(one.output_token_ids) for one in sequences),
        "finish": ",".join(one.finish_reason or "abort" for one in sequences),
    }


def _add_rest(app: FastAPI, service: Service) -> None:
    page = load_page()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page.body, media_type="text/html; charset=utf-8", headers=page.headers)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        shown = docs_page(app.openapi())
        return Response(shown.body, media_type="text/html; charset=utf-8", headers=shown.headers)

    @app.get("/health", response_model=None)
    async def health() -> Response:
        """Whether the model is there: 200 "ready", or 503 "loading", "failed" or "closed"."""
        state = service.worker.state
        return JSONResponse({"status": state, "model": service.model_id}, 200 if state == "ready" else 503)

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Token ids of a text or of a conversation."""
        llm = service.worker.llm

        def work() -> list[int]:
            if body.messages is not None:
                return render_messages(llm, body.messages, {})[0]
            return llm.tokenizer.encode(body.prompt or "", add_special=body.add_special_tokens is not False)

        ids = await service.prepare(work)
        return {"tokens": ids, "count": len(ids), "max_model_len": llm.context}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        """The text of token ids, control tokens included."""
        llm = service.worker.llm
        return {"prompt": await service.prepare(lambda: llm.tokenizer.decode(body.tokens, skip_special=False))}


def _add_errors(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            return from_validation(error.errors()).response()
        if isinstance(error, HTTPException):
            return APIError(error.status_code, str(error.detail), headers=error.headers).response()
        return from_exception(error).response()

    from zoo.errors import ZooError

    for kind in (APIError, ZooError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
