"""A Hugging Face hub on 127.0.0.1: the part of its HTTP API that huggingface-hub uses to list and download models.

Headers and error codes are those of the real hub (X-Repo-Commit, X-Error-Code, ETag, Range). Faults are per file.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".gguf", ".safetensors", ".bin")


@dataclass
class Repo:
    """One model repository. `faults` maps a file name to what goes wrong when it is downloaded."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    card: dict[str, Any] = field(default_factory=lambda: {"license": "mit"})
    gated: bool = False
    listing_status: int = 200
    faults: dict[str, Fault] = field(default_factory=dict)
    served_commit: str | None = None


@dataclass
class Fault:
    """`drop_after`: close the connection once after so many bytes. `status`: answer the GET so. `body`: send this."""

    drop_after: int | None = None
    status: int | None = None
    body: bytes | None = None


@dataclass
class LoopbackHub:
    """The running server: its endpoint, its repositories, and what was asked of it."""

    endpoint: str
    repos: dict[str, Repo]
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def gets(self, suffix: str = "") -> list[tuple[str, str | None]]:
        """(path, Range header) of all downloads whose path ends so."""
        return [(path, span) for verb, path, span in self.requests if verb == "GET" and path.endswith(suffix)]


@contextmanager
def loopback_hub(repos: dict[str, Repo]) -> Iterator[LoopbackHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = LoopbackHub(f"http://127.0.0.1:{server.server_address[1]}", repos)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._list("/".join(parts[2:4]))
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._error(404, "RepoNotFound", "Repository not found")

    def _list(self, name: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            return self._error(404, "RepoNotFound", "Repository not found")
        if repo.listing_status != 200:
            return self._error(repo.listing_status, None, "Invalid username or password.")
        siblings = [_sibling(name, content) for name, content in repo.files.items()]
        document = {"id": name, "sha": repo.commit, "siblings": siblings, "cardData": repo.card, "gated": repo.gated}
        body = json.dumps(document).encode()
        self._head(200, {"Content-Type": "application/json"}, len(body))
        self._body(body)

    def _file(self, name: str, file: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            return self._error(404, "RepoNotFound", "Repository not found")
        if repo.gated:
            return self._error(401, "GatedRepo", "Access to this model is restricted.")
        if file not in repo.files:
            return self._error(404, "EntryNotFound", "Entry not found")
        fault = repo.faults.get(file, Fault())
        content = repo.files[file] if fault.body is None else fault.body
        headers = {
            "X-Repo-Commit": repo.served_commit or repo.commit,
            "ETag": f'"{hashlib.sha256(repo.files[file]).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        if self.command == "GET" and fault.status is not None:
            return self._error(fault.status, None, "Internal error")
        start = 0
        if span := self.headers.get("Range"):
            start = int(span.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest = content[start:]
        self._head(206 if span else 200, headers, len(rest))
        if self.command == "GET" and fault.drop_after is not None:
            rest, fault.drop_after = rest[: fault.drop_after], None
            self.close_connection = True
        self._body(rest)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()

    def _body(self, body: bytes) -> None:
        if self.command == "GET":
            self.wfile.write(body)

    def _error(self, status: int, code: str | None, message: str) -> None:
        self._head(status, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}, 0)


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
    if name.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry
