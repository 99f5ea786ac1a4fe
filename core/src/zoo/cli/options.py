"""Options that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zoo.hooks.types import MAX_THREADS

if TYPE_CHECKING:
    from zoo.llm import LLM

Function = TypeVar("Function", bound=Callable[..., Any])


def _named(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """An empty name is an unset variable of a script: it must not mean the demo model or the current directory."""
    if value is not None and not value.strip():
        raise click.BadParameter("the name is empty", ctx=context, param=option)
    return value


_LOAD = (
    click.option(
        "--model-path",
        metavar="X",
        callback=_named,
        help="A directory, a GGUF file (any shard), or a name that was pulled.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--dtype", default="auto", show_default=True, help="Compute type: auto, float32, bfloat16, float16."),
    click.option("--plugin", metavar="NAME", help="Force a plugin."),
    click.option("--context", type=click.IntRange(1), metavar="N", help="Tokens of context.  [default: what fits]"),
    click.option("--threads", type=click.IntRange(1, MAX_THREADS), metavar="N", help="CPU threads."),
    click.option("--set", "overrides", multiple=True, metavar="K=V", help="Replace a key of the configuration."),
)


def load_options(function: Function) -> Function:
    """Add the options of every command that loads a model."""
    for option in reversed(_LOAD):
        function = option(function)
    return function


def parse_overrides(pairs: tuple[str, ...]) -> dict[str, object]:
    """`k=v` pairs; a value that reads as JSON is that (40, 1.5, true, "text"), any other is a string."""
    overrides: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--set")
        try:
            overrides[key] = json.loads(text)
        except ValueError:
            overrides[key] = text
    return overrides


def printable(text: str) -> str:
    """Text of a file or an error on one line: what would steer the terminal is written as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def load(model_path: str, options: dict[str, Any]) -> LLM:
    """Load a model as the options say, with a progress line on a terminal's stderr."""
    from zoo import LLM  # imports torch

    options = {**options, "overrides": parse_overrides(options["overrides"])}
    if not sys.stderr.isatty():
        return LLM.load(model_path, **options)
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    spinner = Spinner("dots", text=Text(f"loading {model_path}"), style="status.spinner")

    def progress(what: str, done: int, total: int) -> None:
        spinner.update(text=Text(f"{what} {model_path}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"))

    # Console.status does the same, but draws nothing before its timer has run for the first time.
    with Live(spinner, console=Console(stderr=True), refresh_per_second=12.5, transient=True):
        return LLM.load(model_path, progress=progress, **options)
