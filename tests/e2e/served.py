"""Servers for the tests: in a thread of this process, on a free port of the loopback device."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import openai
import uvicorn

from zoo.engine.engine import StepOutput
from zoo.llm import LLM
from zoo.server.app import ServerOptions, Service, create_app
from zoo.server.run import _Protocol, bind


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait until it is so. The time is for a machine that is busy with other things."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


@dataclass
class Served:
    """A running server."""

    url: str
    service: Service

    @property
    def llm(self) -> LLM:
        return self.service.worker.llm

    def client(self, key: str = "none") -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=300)

    def http(self) -> httpx2.Client:
        """A plain client."""
        return httpx2.Client(base_url=self.url, timeout=300)

    def post(self, path: str, body: object, **headers: str) -> httpx2.Response:
        with self.http() as client:
            return client.post(path, json=body, headers=headers)

    def free_blocks(self) -> list[int]:
        return [manager.num_free for manager in self.llm.engine.scheduler.managers]

    def settle(self) -> None:
        """Wait until nothing runs."""
        wait_for(lambda: not (self.service.worker.pending or self.llm.engine.scheduler.has_work), "it comes to rest")

    @contextmanager
    def held(self, after: int = 0) -> Iterator[threading.Event]:
        """The engine takes `after` more steps, and the next when the block ends: what is to meet has time to arrive.

        The event says that a step waits.
        """
        engine, step = self.llm.engine, self.llm.engine.step
        patched = "step" in vars(engine)
        go, waits, left = threading.Event(), threading.Event(), iter(range(after))

        def held_step() -> StepOutput:
            if next(left, None) is None:
                waits.set()
                go.wait()
            return step()

        engine.step = held_step  # type: ignore[method-assign]
        try:
            yield waits
        finally:
            if patched:
                engine.step = step  # type: ignore[method-assign]
            else:
                del engine.step
            go.set()

    def news(self) -> bool:
        """Whether the engine has been told something that it has not looked at, for example that a client is gone."""
        return not self.service.worker._commands.empty()


@contextmanager
def serving(load: Callable[[], LLM], options: ServerOptions | None = None, *, name: str = "tiny") -> Iterator[Served]:
    """A server for as long as the block lasts. It ends, whatever happened."""
    service = Service(load, name, options or ServerOptions())
    listening = bind("127.0.0.1", 0)
    config = uvicorn.Config(
        create_app(service),
        http=_Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=60,  # by default 5 s, after which a client may lose a request on a connection that closes
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread.start()
    try:
        wait_for(lambda: service.worker.state != "loading" and server.started, "the server has started")
        yield Served(url, service)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"
