"""What stands before every request: who may ask, from where, how much and how long. Also its line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zoo.server.errors import APIError, event
from zoo.server.metrics import Metrics

LOG = logging.getLogger("zoo.server")
_LAST_WORD_S = 1.0
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_SECURITY = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}


@dataclass(frozen=True, slots=True)
class Limits:
    """`body_bytes` of a request; `body_s` to send it; `request_s` from the first byte to the last of the answer;
    `requests` that are answered at the same time."""

    body_bytes: int = 8 << 20
    body_s: float = 30.0
    request_s: float = 600.0
    requests: int = 256


@dataclass(frozen=True, slots=True)
class Access:
    """`api_key`: what `Authorization: Bearer` must say; None: nothing. `hosts`: names in the Host header beside
    addresses and loopback; `any_host`: all. `origins`: pages of other sites that may ask (CORS); "*": any."""

    api_key: str | None = field(default=None, repr=False)
    hosts: Sequence[str] = ()
    any_host: bool = False
    origins: Sequence[str] = ()


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(
        self, app: ASGIApp, *, access: Access, limits: Limits, metrics: Metrics, paths: frozenset[str]
    ) -> None:
        """`paths`: those that count by name in the metrics; others are counted together."""
        self._app = app
        self._access = access
        self._limits = limits
        self._metrics = metrics
        self._paths = paths
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self._access)
        self._active += 1
        try:
            await self._answer(scope, receive, exchange)
        except asyncio.CancelledError:
            exchange.status = exchange.status or 499
            raise
        finally:
            self._active -= 1
            path = scope["path"]
            self._metrics.requests.labels(path if path in self._paths else "other", str(exchange.status)).inc()
            exchange.log()

    async def _answer(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        try:
            async with asyncio.timeout(self._limits.request_s):
                try:
                    self._check(scope, exchange)
                    if exchange.preflight:
                        await Response(status_code=204)(scope, receive, exchange.send)
                        return
                    receive = await self._body(exchange.headers, receive)
                    await self._app(scope, receive, exchange.send)
                except APIError as error:
                    if exchange.status:
                        raise
                    await error.response()(scope, receive, exchange.send)
        except TimeoutError:
            late = APIError(408, f"the request took longer than {self._limits.request_s:g} s")
            if not exchange.status:
                await late.response()(scope, receive, exchange.send)
            elif exchange.streams:
                # A client that does not read either loses the connection instead.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_WORD_S):
                        await exchange.send({"type": "http.response.body", "body": event(late.body())})

    def _check(self, scope: Scope, exchange: _Exchange) -> None:
        headers, access = exchange.headers, self._access
        if self._active > self._limits.requests:
            raise APIError(
                429,
                f"more than {self._limits.requests} requests at the same time",
                headers={"Retry-After": "1"},
            )
        host = headers.get("host", "")
        if not access.any_host and not _known_host(host, access.hosts):
            raise APIError(403, "this Host header is not served here; `--allowed-host` adds names", code="host")
        origin = headers.get("origin")
        if origin is not None and not exchange.cors and urlsplit(origin).netloc != host:
            raise APIError(403, "pages of other sites may not ask here; `--cors` allows them", code="origin")
        if exchange.preflight or scope["path"] in _OPEN:
            return
        if access.api_key is not None:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {access.api_key}".encode()):
                raise APIError(
                    401,
                    "the API key is missing or wrong; send `Authorization: Bearer KEY`",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            raise APIError(415, f"the content type is {kind or 'missing'!r}; send application/json")

    async def _body(self, headers: Headers, receive: Receive) -> Receive:
        """Read the whole body, within its limits, and replay it."""
        limit = self._limits.body_bytes
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:18]) > limit:
            raise APIError(413, f"the body has {length[:18]} bytes, more than {limit}", headers={"Connection": "close"})
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise APIError(499, "the client is gone")
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limit:
                        raise APIError(413, f"the body has more than {limit} bytes", headers={"Connection": "close"})
        except TimeoutError:
            raise APIError(
                408, f"the body did not come within {self._limits.body_s:g} s", headers={"Connection": "close"}
            ) from None
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return replay


_OPEN = frozenset({"/health", "/"})
"""Paths that need no key: whether the server is there, and the page, which asks for the key itself."""


class _Exchange:
    """One request and what became of it."""

    def __init__(self, scope: Scope, send: Send, access: Access) -> None:
        self.headers = Headers(scope=scope)
        self.status = 0
        self.streams = False  # whether an unfinished answer is one of server-sent events
        self._scope = scope
        self._send = send
        self._started = time.perf_counter()
        origin = self.headers.get("origin")
        self.cors = origin if origin is not None and ("*" in access.origins or origin in access.origins) else None
        self.preflight = (
            scope["method"] == "OPTIONS" and self.cors is not None and "access-control-request-method" in self.headers
        )
        # What endpoints add to the line in the log.
        self.notes: dict[str, Any] = scope.setdefault("state", {}).setdefault("notes", {})

    async def send(self, message: Message) -> None:
        """Pass a message on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY.items():
                headers.setdefault(name, value)
            if self.cors is not None:
                headers["Access-Control-Allow-Origin"] = self.cors
                headers.add_vary_header("Origin")
                if self.preflight:
                    headers["Access-Control-Allow-Methods"] = "GET, POST"
                    headers["Access-Control-Allow-Headers"] = "authorization, content-type"
                    headers["Access-Control-Max-Age"] = "600"
            self.streams = headers.get("content-type", "").startswith("text/event-stream")
        elif not message.get("more_body", False):
            self.streams = False
        await self._send(message)

    def log(self) -> None:
        """One line, without anything that the request said but its method and path."""
        path = "".join(char if char.isprintable() and not char.isspace() else "?" for char in self._scope["path"][:200])
        seconds = time.perf_counter() - self._started
        notes = "".join(f" {name}={value}" for name, value in self.notes.items())
        LOG.info("%s %s %s %.3fs%s", self._scope["method"][:10], path, self.status or 499, seconds, notes)


def _known_host(header: str, names: Sequence[str]) -> bool:
    """Whether a Host header names this machine: a page of another site that points its name here is kept out.

    An address is what a browser was told to connect to: no name was looked up, so nobody can have changed its meaning.
    """
    host = (urlsplit(f"//{header}").hostname or "") if _plain(header) else ""
    if host in _LOOPBACK_NAMES or host in {name.lower() for name in names}:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _plain(header: str) -> bool:
    try:
        return urlsplit(f"//{header}").path == "" and "@" not in header
    except ValueError:
        return False
