"""The engine thread: the one thread that owns the model. asyncio talks to it by queues, and it answers on the event
loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from zoo.engine.generation import Request
from zoo.engine.result import Piece
from zoo.errors import CapacityError, UsageError
from zoo.llm import LLM
from zoo.server.errors import APIError, from_exception
from zoo.server.metrics import Metrics


class Job:
    """The sequences of one HTTP request, from `Worker.submit`. Read `events`, then `close` it, whatever happens."""

    def __init__(self, requests: Sequence[Request], worker: Worker) -> None:
        self.requests = tuple(requests)
        self.events: asyncio.Queue[tuple[int, Piece | APIError]] = asyncio.Queue()
        self._worker = worker

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(index of the sequence, piece) as they come, to the end of all. Raises APIError where the engine fails."""
        left = len(self.requests)
        while left:
            index, event = await self.events.get()
            if isinstance(event, APIError):
                raise event
            left -= event.finish_reason is not None
            yield index, event

    def close(self) -> None:
        """Stop what still runs, within one step. Closing a job that has ended changes nothing."""
        self._worker.abort(self)


@dataclass(eq=False)
class _Live:
    """One sequence in the engine."""

    job: Job
    index: int
    request: Request
    submitted: float = field(default_factory=time.perf_counter)
    last: float | None = None


class Worker:
    """Loads a model and runs it, in a thread of its own.

    `state` is "loading", "ready", "failed" or "closed"; `llm` the model when it is ready. `on_lost` is called on the
    event loop when the model cannot be loaded or does not compute any more; `failure` says why.
    """

    def __init__(self, load: Callable[[], LLM], *, max_queue: int, metrics: Metrics) -> None:
        self._load = load
        self._max_queue = max_queue
        self._metrics = metrics
        self._commands: queue.SimpleQueue[tuple[str, Job | None]] = queue.SimpleQueue()
        self._live: list[_Live] = []
        self._pending = 0  # sequences that were submitted and have not ended; touched on the event loop only
        self._thread = threading.Thread(target=self._main, name="zoo-engine", daemon=True)
        self._ready: LLM | None = None
        self.state = "loading"
        self.failure: BaseException | None = None
        self.on_lost: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to load. Call it on the event loop that will submit jobs."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def llm(self) -> LLM:
        """The model. Raises APIError (503) where it is not there."""
        if self._ready is None:
            raise APIError(503, f"the model is {self.state}", headers={"Retry-After": "2"})
        return self._ready

    @property
    def pending(self) -> int:
        """Sequences that wait or run."""
        return self._pending

    def check_room(self, count: int) -> None:
        """Raise APIError (429) where the queue has no room for so many more sequences."""
        seats = self.llm.engine.scheduler.max_num_seqs
        if self._pending + count > seats + self._max_queue:
            raise APIError(
                429,
                f"{self._pending} sequences run or wait, and the queue holds {self._max_queue} beside {seats} that run",
                headers={"Retry-After": "1"},
            )

    def submit(self, requests: Sequence[Request]) -> Job:
        """Queue sequences. Raises APIError where there is no room."""
        self.check_room(len(requests))
        job = Job(requests, self)
        self._pending += len(requests)
        self._commands.put(("add", job))
        return job

    def abort(self, job: Job) -> None:
        """Stop the sequences of a job that still run."""
        self._commands.put(("abort", job))

    async def close(self) -> None:
        """Abort what runs, end the thread and give the model back."""
        self._commands.put(("close", None))
        await asyncio.to_thread(self._thread.join)

    # --- the engine thread ---

    def _main(self) -> None:
        try:
            llm = self._load()
        except BaseException as error:
            self._lose(error)
            return
        self._ready, self.state = llm, "ready"
        try:
            while self._take_commands(llm):
                if self._live:
                    self._step(llm)
        except BaseException as error:
            self._lose(error)
        finally:
            self._ready = None
            if self.state != "failed":
                self.state = "closed"
            llm.close()

    def _take_commands(self, llm: LLM) -> bool:
        """Do what was asked for, waiting for it where there is nothing else to do. False: close."""
        while True:
            try:
                command, job = self._commands.get(block=not self._live)
            except queue.Empty:
                return True
            if command == "close":
                for live in list(self._live):
                    self._fail(llm, live, APIError(503, "the server shuts down"))
                return False
            assert job is not None
            ended = 0
            if command == "add":
                for index, request in enumerate(job.requests):
                    request.begin()
                    llm.engine.add(request.sequence)
                    self._live.append(_Live(job, index, request))
            else:
                for live in [live for live in self._live if live.job is job]:
                    llm.engine.stop(live.request.sequence, "abort")
                    self._live.remove(live)
                    ended += 1
            self._gauge(llm)
            for _ in range(ended):
                self._loop.call_soon_threadsafe(self._ended)

    def _step(self, llm: LLM) -> None:
        engine = llm.engine
        try:
            output = engine.step()
        except Exception as error:
            if not engine.usable():
                raise
            self._metrics.step_failures.inc()
            active = set(map(id, engine.active))
            guilty = [live for live in self._live if id(live.request.sequence) in active] or list(self._live)
            for live in guilty:
                self._fail(llm, live, _internal(error))
            return
        self._metrics.step(len(output.advanced), output.num_tokens)
        pieces = []
        for live in [live for live in self._live if live.request.pending or live.request.sequence.error]:
            try:
                piece = live.request.advance(engine)
            except Exception as error:
                self._fail(llm, live, from_exception(error))
                continue
            self._clock(live)
            if piece.finish_reason is not None:
                self._live.remove(live)
            pieces.append((live, piece))
        self._gauge(llm)  # before anybody hears of an end, and asks
        for live, piece in pieces:
            self._deliver(live, piece)

    def _fail(self, llm: LLM, live: _Live, error: APIError) -> None:
        llm.engine.stop(live.request.sequence, "abort")
        self._live.remove(live)
        self._deliver(live, error)

    def _deliver(self, live: _Live, event: Piece | APIError) -> None:
        def put() -> None:
            live.job.events.put_nowait((live.index, event))
            if isinstance(event, APIError) or event.finish_reason is not None:
                self._ended()

        self._loop.call_soon_threadsafe(put)

    def _ended(self) -> None:
        self._pending -= 1

    def _clock(self, live: _Live) -> None:
        now = time.perf_counter()
        if live.last is None:
            self._metrics.first_token.observe(now - live.submitted)
            self._metrics.cached_tokens.inc(live.request.sequence.num_cached_tokens or 0)
            self._metrics.prompt_tokens.inc(len(live.request.sequence.prompt_token_ids))
        else:
            self._metrics.inter_token.observe(now - live.last)
        live.last = now

    def _gauge(self, llm: LLM) -> None:
        scheduler = llm.engine.scheduler
        used = max(
            ((m.num_blocks - 1 - m.num_free) / max(1, m.num_blocks - 1) for m in scheduler.managers), default=0.0
        )
        self._metrics.queue(len(scheduler.running), len(scheduler.waiting), used)

    def _lose(self, error: BaseException) -> None:
        """The model is gone: tell everybody who waits for it."""
        self.state, self.failure = "failed", error
        gone = APIError(503, "the model failed and the server stops")
        for live in self._live:
            self._deliver(live, gone)
        self._live.clear()
        self._loop.call_soon_threadsafe(lambda: self.on_lost())


def _internal(error: Exception) -> APIError:
    """What sequences are told whose step failed. The request is not to blame: never a 400."""
    if isinstance(error, CapacityError):
        return from_exception(error)
    return APIError(500, f"the model failed: {error if isinstance(error, UsageError) else type(error).__name__}")
