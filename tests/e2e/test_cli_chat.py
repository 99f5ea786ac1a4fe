"""The chat of `zoo run`: the history it sends, its commands, and how it survives errors and Ctrl-C."""

from __future__ import annotations

import builtins
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zoo import LLM, SamplingParams
from zoo.cli.chat import Chat
from zoo.errors import UsageError

PARAMS = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def llm(tiny: Any) -> Iterator[LLM]:
    with LLM.load(tiny.path) as model:
        yield model


class Talk:
    """A chat whose lines come from a list; keeps what was sent to the model."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.llm = llm
        self.monkeypatch = monkeypatch
        self.sent: list[Any] = []
        self.stream = llm.stream

        def stream(prompt: Any, params: Any) -> Any:
            self.sent.append(prompt)
            return self.stream(prompt, params)

        monkeypatch.setattr(llm, "stream", stream)

    def run(self, *lines: str | BaseException, system: str | None = None, stats: bool = False) -> Chat:
        left = list(lines)

        def ask(prompt: str = "") -> str:
            if not left:
                raise EOFError
            line = left.pop(0)
            if isinstance(line, BaseException):
                raise line
            return line

        self.monkeypatch.setattr(builtins, "input", ask)
        chat = Chat(self.llm, PARAMS, system, stats)
        chat.loop()
        assert not left, "the chat ended early"
        return chat


@pytest.fixture
def talk(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Talk:
    return Talk(llm, monkeypatch)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_the_history_is_sent_again(talk: Talk, llm: LLM) -> None:
    chat = talk.run("the theory", "  of words  ", "")
    first = llm.chat([user("the theory")], PARAMS).text
    conversation = [user("the theory"), assistant(first), user("of words")]
    assert talk.sent == [[user("the theory")], conversation]
    assert chat.messages == [*conversation, assistant(llm.chat(conversation, PARAMS).text)]


def test_reset_forgets_and_keeps_the_system_message(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.run("a", "/reset", "b", system="be short")
    head = {"role": "system", "content": "be short"}
    assert talk.sent == [[head, user("a")], [head, user("b")]]
    assert "(forgotten)" in capsys.readouterr().err


def test_system_sets_and_removes_the_message(talk: Talk) -> None:
    talk.run("a", "/system talk like  a pirate", "b", "/system", "c")
    head = {"role": "system", "content": "talk like  a pirate"}
    assert talk.sent == [[user("a")], [head, user("b")], [user("c")]]


def test_help_stats_and_unknown_commands(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.run("/help", "/stats", "a", "/stats", "/sing", "/quit")
    captured = capsys.readouterr()
    for command in ("/help", "/reset", "/system TEXT", "/stats", "/quit"):
        assert command in captured.err
    assert "(no answer yet)" in captured.err
    assert re.search(r"\[\d+ prompt tokens at .*, 6 tokens at .*, length\]", captured.err)
    assert "/sing is no command; /help lists them" in captured.err
    assert len(talk.sent) == 1
    assert "prompt tokens" not in captured.out


def test_a_space_makes_a_slash_a_message(talk: Talk) -> None:
    talk.run(" /etc/hosts")
    assert talk.sent == [[user("/etc/hosts")]]


def test_statistics_after_each_answer(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.run("a", "b", stats=True)
    assert len(re.findall(r"prompt tokens at", capsys.readouterr().err)) == 2


def test_an_error_keeps_the_conversation(talk: Talk, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    chat = talk.run("a", "the " * 300, "b")
    assert "tokens, the context 256" in (err := capsys.readouterr().err)
    assert "/reset forgets the conversation" in err
    assert talk.sent[2] == [user("a"), assistant(llm.chat([user("a")], PARAMS).text), user("b")]
    assert len(chat.messages) == 4


def test_ctrl_c_at_the_prompt_leaves_nothing(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.run("a", KeyboardInterrupt(), "b")
    assert len(talk.sent[1]) == 3
    assert "(/quit leaves)" in capsys.readouterr().err


@pytest.mark.parametrize("pieces", [0, 2])
def test_ctrl_c_during_an_answer(talk: Talk, llm: LLM, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    """What was written stays; a question without any answer goes. The engine is empty again."""
    full, step = llm.chat([user("a")], PARAMS).text, llm._engine.step
    left = pieces

    def interrupted() -> Any:
        nonlocal left
        if left == 0:
            monkeypatch.setattr(llm._engine, "step", step)
            signal.raise_signal(signal.SIGINT)
        left -= 1
        return step()

    monkeypatch.setattr(llm._engine, "step", interrupted)
    chat = talk.run("a", "b", stats=True)
    assert not llm._engine.scheduler.has_work
    if pieces:
        (asked, part, last) = talk.sent[1]
        assert (asked, last) == (user("a"), user("b"))
        assert 0 < len(part["content"]) < len(full)
        assert full.startswith(part["content"])
    else:
        assert talk.sent[1] == [user("b")]
    assert chat.messages[-1]["role"] == "assistant"


def test_a_line_that_is_no_text(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.run(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "a\udcff", "b")
    assert len(talk.sent[-1]) == 1
    err = capsys.readouterr().err
    assert "no text in this terminal's encoding" in err
    assert "lone surrogate" in err


def test_a_model_without_a_template_continues_the_text(
    plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with LLM.load(plain) as model:
        talk = Talk(model, monkeypatch)
        talk.run("a", "/system x", "b")
        answer = model.generate("a", PARAMS).text
        assert talk.sent == ["a", f"a\n{answer}\nb"]
        assert "no chat template" in capsys.readouterr().err
        with pytest.raises(UsageError, match="--system needs a chat template"):
            talk.run("a", system="x")


@pytest.mark.parametrize("option", ["--raw", "--json"])
def test_options_that_need_a_prompt(option: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from zoo.cli.main import main

    stdin = io.StringIO("")
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(SystemExit) as exit:
        main(["run", option])
    assert exit.value.code == 2
    assert f"{option} needs a prompt" in capsys.readouterr().err


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, args: list[str], **environ: str) -> None:
        self.master, slave = pty.openpty()
        self.unread = ""
        # A session of its own with this terminal: Ctrl-C must reach the process as a signal.
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
             "from zoo.cli.main import main; main()", *args],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "TERM": "dumb", "INPUTRC": "/dev/null", **environ},
        )  # fmt: skip
        os.close(slave)

    def until(self, pattern: str, timeout: float = 120) -> str:
        """Output up to and with a match; the rest waits for the next call. The limit is generous."""
        end = time.monotonic() + timeout
        while not (match := re.search(pattern, self.unread)):
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.unread!r}"
            try:
                chunk = os.read(self.master, 4096)
            except OSError:  # the other side is closed
                chunk = b""
            assert chunk, f"the process ended without {pattern!r}: {self.unread!r}"
            self.unread += chunk.decode("utf-8", "replace")
        seen, self.unread = self.unread[: match.end()], self.unread[match.end() :]
        return seen

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self) -> int:
        try:
            return self.process.wait(60)
        finally:
            os.close(self.master)


@pytest.fixture
def terminal(smollm2: Path) -> Iterator[Terminal]:
    chat = Terminal(["run", "--model-path", str(smollm2), "--temperature", "0", "--stats"])
    yield chat
    if chat.process.poll() is None:
        chat.process.kill()
        chat.process.wait()


def test_loading_is_shown_on_a_terminal(tiny: Any) -> None:
    done = Terminal(["run", "x", "--model-path", str(tiny.path), "--max-tokens", "1"], TERM="xterm")
    assert "loading" in done.until(r"zoo: context 256 tokens")
    assert done.wait() == 0


def test_a_conversation_on_a_terminal(terminal: Terminal) -> None:
    terminal.until(r"/help lists commands\.\r\n")
    terminal.until("> ")
    terminal.type("Write a very long story about a fox.\n")
    terminal.until(r"fox\.\r\n(?s:.{10})")  # the echo of the line, then an answer begins
    terminal.type("\x03")
    terminal.until(r"\(stopped\)\r\n")
    terminal.until("> ")
    terminal.type("/reset\n")
    terminal.until(r"\(forgotten\)")
    counts = []
    for _ in range(2):
        terminal.until("> ")
        terminal.type("Name the capital of France.\n")
        shown = terminal.until(r"\[(\d+) prompt tokens .*stop\]\r\n")
        assert "Paris" in shown
        counts.append(int(re.findall(r"\[(\d+) prompt", shown)[0]))
    assert counts[1] > counts[0] == 36  # the second prompt holds the first exchange too
    terminal.until("> ")
    terminal.type("/reset\n")
    terminal.until(r"\(forgotten\)")
    terminal.until("> ")  # between prompts, the end of input may get lost as the terminal changes its mode
    terminal.type("\x04")
    assert terminal.wait() == 0
