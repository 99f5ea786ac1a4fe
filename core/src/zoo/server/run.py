"""Runs the application: socket, signals, logs, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from zoo.errors import UsageError, ZooError
from zoo.server.app import Service, create_app

HEADER_S = 15.0
"""Seconds in which a connection must have sent the head of a request."""

MAX_CONNECTIONS = 1024
"""Open connections, idle ones included."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: any free one. Raises UsageError where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise UsageError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}", remedy="choose another --host or --port"
        ) from None
    return made


def serve(service: Service, listening: socket.socket, *, grace: float, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then let requests end within `grace` seconds.

    `ready` is called when the model is loaded. Raises what the model failed with.
    """
    asyncio.run(_serve(service, listening, grace, ready))
    failure = service.worker.failure
    if isinstance(failure, ZooError):
        raise failure
    if failure is not None:
        raise ZooError(f"the model failed: {type(failure).__name__}: {failure}") from failure


async def _serve(service: Service, listening: socket.socket, grace: float, ready: Callable[[], None]) -> None:
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what happens is in our own lines
    config = uvicorn.Config(
        create_app(service),
        http=_Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(grace)),
        timeout_keep_alive=30,
        backlog=128,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    service.worker.on_lost = server.stop
    watcher = asyncio.ensure_future(_when_ready(service, ready))
    try:
        await server.serve(sockets=[listening])
    finally:
        watcher.cancel()


async def _when_ready(service: Service, ready: Callable[[], None]) -> None:
    while service.worker.state == "loading":
        await asyncio.sleep(0.02)
    if service.worker.state == "ready":
        ready()


class _Server(uvicorn.Server):
    """uvicorn's, with signals handled by us: SIGTERM ends it with exit code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Stop accepting and let requests end; a second time: end now."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, for clients that open connections and say nothing."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(HEADER_S, self._drop_silent)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)

    def _drop_silent(self) -> None:
        if getattr(self, "cycle", None) is None:  # typed as if it were always there
            self.transport.close()
