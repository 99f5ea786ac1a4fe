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

from zoo.llm import LLM
from zoo.server.app import ServerOptions, Service, create_app
from zoo.server.run import _Protocol, bind


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
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def http(self) -> httpx2.Client:
        """A plain client."""
        return httpx2.Client(base_url=self.url, timeout=60)

    def post(self, path: str, body: object, **headers: str) -> httpx2.Response:
        with self.http() as client:
            return client.post(path, json=body, headers=headers)

    def free_blocks(self) -> list[int]:
        return [manager.num_free for manager in self.llm.engine.scheduler.managers]

    def settle(self) -> None:
        """Wait until nothing runs."""
        deadline = time.monotonic() + 20
        while self.service.worker.pending or self.llm.engine.scheduler.has_work:
            assert time.monotonic() < deadline, "the server does not come to rest"
            time.sleep(0.01)


@contextmanager
def serving(load: Callable[[], LLM], options: ServerOptions | None = None, *, name: str = "tiny") -> Iterator[Served]:
    """A server for as long as the block lasts. It ends within seconds, whatever happened."""
    service = Service(load, name, options or ServerOptions())
    listening = bind("127.0.0.1", 0)
    config = uvicorn.Config(
        create_app(service), http=_Protocol, ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while service.worker.state == "loading" or not server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)
        yield Served(url, service)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not end"
