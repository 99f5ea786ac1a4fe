"""How a pull tells what it does: the caller hands in a `Reporter`, nothing here prints."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Receives the news of a pull."""

    def say(self, text: str) -> None:
        """One line for the user: a choice that was made, a licence, a result."""

    def progress(self, label: str, done: int, total: int) -> None:
        """`done` of `total` bytes of the step called `label`; a step ends with `done == total` or an error."""


class Silent:
    """A reporter that drops everything, for use from a script."""

    def say(self, text: str) -> None:
        """Drop `text`."""

    def progress(self, label: str, done: int, total: int) -> None:
        """Drop the progress."""


def human_size(nbytes: int) -> str:
    """`nbytes` in decimal units, as disks and hubs count: `98.4 MB`."""
    size = float(nbytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.95:
            return f"{nbytes} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def printable(text: object) -> str:
    """The first line of `text` without control characters: what a server says must not steer a terminal."""
    lines = str(text).strip().splitlines()
    return "".join(c if c.isprintable() else "?" for c in lines[0].strip()) if lines else ""
