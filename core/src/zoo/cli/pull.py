"""`zoo pull`: fetch a model into the cache."""

from __future__ import annotations

import importlib.metadata
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from zoo.hub.catalogue import CATALOGUE
from zoo.hub.report import human_size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_DEMOS = ", ".join(f"{entry.name} ({human_size(entry.download_size)})" for entry in CATALOGUE.values())


class StderrReporter:
    """Tells of a pull on stderr: lines, and a bar on a terminal or one line per tenth elsewhere."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._label = ""
        self._tenth = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()

    def say(self, text: str) -> None:
        """Print one line."""
        self._finish()
        click.echo(text, err=True)

    def progress(self, label: str, done: int, total: int) -> None:
        """Show `done` of `total` bytes."""
        if label != self._label:
            self._finish()
            self._label = label
            self._tenth = 0
            if sys.stderr.isatty():
                self._start(label, total)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)
        elif total and done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            click.echo(f"{label}: {human_size(done)} of {human_size(total)}", err=True)
        if done >= total:
            self._stop()
            self._tenth = 10

    def _start(self, label: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(label, total=total)
        self._bar.start()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def _finish(self) -> None:
        self._stop()
        self._label = ""


@click.command(
    "pull",
    help=(
        "Fetch the model NAME into the cache, and print its path.\n\n"
        f"NAME is one of {_DEMOS}, or ORG/REPO[:FILE or :QUANT] on the Hugging Face hub, for example "
        "bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M."
    ),
)
@click.argument("name")
def pull(name: str) -> None:
    """Fetch a model into the cache; prints its path."""
    from zoo.hub import names
    from zoo.settings import Settings

    with StderrReporter() as reporter:
        model = names.pull(name, Settings.from_env(), reporter)
        entry = CATALOGUE.get(name)
        if entry is not None and not _installed(entry.plugin):
            reporter.say(f"{name} runs with the plugin {entry.plugin}: install it with `pip install {entry.plugin}`")
    click.echo(model.path)


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
