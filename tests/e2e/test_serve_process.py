"""`zoo serve` as a process: start, signals, exit codes, what it prints."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from e2e.conftest import Call


class Process:
    """A running `zoo serve`, its stderr line by line."""

    def __init__(self, *args: str, before: str = "", env: dict[str, str] | None = None) -> None:
        """`before`: Python that runs first in the process."""
        script = f"{before}\nfrom zoo.cli.main import main\nmain()"
        self.child = subprocess.Popen(
            [sys.executable, "-c", script, "serve", "--port", "0", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str, seconds: float = 120) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            assert self.child.poll() is None, self.lines
            time.sleep(0.02)
        raise AssertionError(f"no line {pattern!r} in {self.lines}")

    @property
    def url(self) -> str:
        return self.wait_for(r"listening at (http://\S+),")[1]

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """The exit code and stdout."""
        code = self.child.wait(seconds)
        self._reader.join(60)
        assert self.child.stdout is not None
        return code, self.child.stdout.read()


@contextmanager
def process(*args: str, before: str = "", env: dict[str, str] | None = None) -> Iterator[Process]:
    made = Process(*args, before=before, env=env)
    try:
        yield made
    finally:
        if made.child.poll() is None:
            made.child.kill()
        made.child.wait(60)


# The model is loaded when a file is there, so that a test can look before.
HELD = """
import os, time
from zoo.llm import LLM
load = LLM.load
def held(*args, **options):
    while not os.path.exists({go!r}):
        time.sleep(0.01)
    return load(*args, **options)
LLM.load = held
"""


def health(url: str) -> tuple[int, str]:
    answer = httpx2.get(url + "/health", timeout=60)
    return answer.status_code, answer.json()["status"]


def body(tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": "the theory", "max_tokens": tokens, "ignore_eos": True, **more}


def test_a_server_from_start_to_end(tiny: Any, tmp_path: Path) -> None:
    options, go = ("--model-path", str(tiny.path), "--context", "256", "--grace", "60"), tmp_path / "go"
    with process(*options, before=HELD.format(go=str(go)), env={"ZOO_API_KEY": "secret"}) as made:
        url = made.url
        assert health(url) == (503, "loading")
        go.touch()
        made.wait_for(r"is ready at http://127\.0\.0\.1:\d+/v1")
        assert health(url) == (200, "ready")
        headers = {"Authorization": "Bearer secret"}
        assert httpx2.post(url + "/v1/completions", json=body(3), timeout=60).status_code == 401
        answer = httpx2.post(url + "/v1/completions", json=body(3), headers=headers, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 3
        line = made.wait_for(r"POST /v1/completions 200 .*")[0]
        assert "prompt=4 cached=0 completion=3 finish=length" in line
        assert not any("theory" in line or "secret" in line for line in made.lines)

        long = body(200, stream=True)
        with httpx2.stream("POST", url + "/v1/completions", json=long, headers=headers, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            made.child.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]", "an answer that was begun ends"
        assert '"finish_reason":"length"' in rest[-2]
        assert made.end() == (0, "")
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(url + "/health", timeout=60)


def test_what_does_not_end_within_the_grace_is_aborted(tiny: Any) -> None:
    slow = """
import time
from zoo.engine.engine import Engine
step = Engine.step
Engine.step = lambda self: (time.sleep(0.5), step(self))[1]"""
    with process("--model-path", str(tiny.path), "--grace", "1", before=slow) as made:
        made.wait_for("is ready")
        url = made.url + "/v1/completions"
        with httpx2.stream("POST", url, json=body(200, stream=True), timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            made.child.send_signal(signal.SIGTERM)
            started = time.monotonic()
            with pytest.raises(httpx2.HTTPError):
                list(lines)
        assert made.end()[0] == 0
        assert time.monotonic() - started < 60, "the answer would take 100 s"


def test_a_model_that_cannot_be_loaded_ends_it(tmp_path: Path) -> None:
    with process("--model-path", str(tmp_path)) as made:
        code, out = made.end()
        assert (code, out) == (1, "")
        assert made.lines[-1].startswith("zoo: ")
        assert str(tmp_path) in made.lines[-1]


def test_a_port_in_use(call: Call, tiny: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = call("serve", "--model-path", tiny.path, "--port", str(port))
    assert outcome.code == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in outcome.err


def test_bad_options(call: Call, tiny: Any) -> None:
    for options, words in [
        (["--port", "70000"], "70000"),
        (["--api-key", "two words"], "characters that a header cannot carry"),
        (["--host", "not-an-address.invalid"], "cannot listen"),
        (["--max-queue", "-1"], "-1"),
    ]:
        outcome = call("serve", "--model-path", tiny.path, *options)
        assert outcome.code == 2
        assert words in outcome.err
