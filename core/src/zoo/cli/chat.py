"""The interactive chat of `zoo run`."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import click

from zoo.cli.options import printable
from zoo.cli.run import say_stats, show
from zoo.errors import ContextLengthError, UsageError, ZooError

if TYPE_CHECKING:
    from zoo.engine.result import Generation
    from zoo.engine.sequence import SamplingParams
    from zoo.llm import LLM

_HELP = """/help          this list
/reset         forget the conversation
/system TEXT   set the system message and start again; without TEXT: remove it
/stats         speed of the last answer
/quit          leave (also Ctrl-D)
A space before the slash makes it a message.
Ctrl-C stops an answer; what was written of it stays in the conversation."""


class Chat:
    """A conversation with history, on a terminal."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None, stats: bool) -> None:
        self.llm = llm
        self.params = params
        self.system = system
        self.stats = stats
        self.messages: list[dict[str, str]] = []
        self.last: Generation | None = None
        self.reset()

    def reset(self) -> None:
        """Start again, with the system message if there is one."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def loop(self) -> None:
        """Read lines until /quit or the end of input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # line editing and history for input()
        if not self.llm.has_chat_template:
            if self.system:
                raise UsageError("--system needs a chat template, the model has none", remedy="leave it out")
            click.echo("zoo: the model has no chat template; it continues the text of the conversation", err=True)
        click.echo("Type a message; /help lists commands.", err=True)
        while True:
            try:
                line = _ask()
            except EOFError:
                click.echo(err=True)
                return
            except UnicodeDecodeError:
                click.echo("zoo: the line is no text in this terminal's encoding", err=True)
                continue
            except KeyboardInterrupt:
                click.echo("\n(/quit leaves)", err=True)
                continue
            if line.startswith("/"):
                if not self.command(line.rstrip()):
                    return
            elif line.strip():
                self.answer(line.strip())

    def command(self, line: str) -> bool:
        """Obey a line that begins with a slash. False: leave."""
        name, _, rest = line[1:].partition(" ")
        if name == "quit":
            return False
        if name == "help":
            click.echo(_HELP, err=True)
        elif name == "reset":
            self.reset()
            click.echo("(forgotten)", err=True)
        elif name == "system" and not self.llm.has_chat_template:
            click.echo("(the model has no chat template, so no system message)", err=True)
        elif name == "system":
            self.system = rest.strip() or None
            self.reset()
            click.echo(
                "(system message set, conversation forgotten)" if self.system else "(no system message)", err=True
            )
        elif name == "stats":
            if self.last is None:
                click.echo("(no answer yet)", err=True)
            else:
                say_stats(self.last)
        else:
            click.echo(f"/{name} is no command; /help lists them", err=True)
        return True

    def answer(self, text: str) -> None:
        """Answer one message. An error leaves the conversation as it was; an interrupted answer stays in it."""
        asked = [*self.messages, {"role": "user", "content": text}]
        shown: list[str] = []
        try:
            prompt = asked if self.llm.has_chat_template else _plain(asked)
            self.last = show(self.llm, prompt, self.params, seen=shown)
        except KeyboardInterrupt:
            click.echo("\n(stopped)", err=True)
            if not shown:
                return  # a question without any answer would confuse the next one
        except ContextLengthError as error:
            click.echo(f"zoo: {error}; /reset forgets the conversation", err=True)
            return
        except ZooError as error:
            click.echo(f"zoo: {printable(str(error))}", err=True)
            return
        else:
            if self.stats:
                say_stats(self.last)
        self.messages = [*asked, {"role": "assistant", "content": "".join(shown)}]


def _ask() -> str:
    """A line from the terminal. The mark before it belongs to the terminal: a pipe behind stdout gets answers only."""
    if sys.stdout.isatty():
        return input("> ")
    click.echo("> ", nl=False, err=True)
    return input()


def _plain(messages: list[dict[str, str]]) -> str:
    """For a model without a template: the text so far, which it continues."""
    return "\n".join(message["content"] for message in messages)
