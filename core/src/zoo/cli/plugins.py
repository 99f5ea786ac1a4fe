"""`zoo plugins`: what is installed, what it runs, and what is broken."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from zoo.plugin.manager import PluginRow

_COLUMNS = ("name", "version", "distribution", "architectures", "formats")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def plugins(as_json: bool) -> None:
    """List the installed plugins, broken ones with their error."""
    from zoo.hooks import HOOK_API_VERSION
    from zoo.plugin.manager import PluginManager
    from zoo.settings import Settings

    rows = PluginManager.discover(Settings.from_env()).rows
    if as_json:
        found = [dataclasses.asdict(row) for row in rows]
        click.echo(json.dumps({"hook_api": HOOK_API_VERSION, "plugins": found}, indent=2))
    elif not rows:
        click.echo("No plugin is installed. For Llama models: pip install zoo-llama")
    elif _on_terminal():
        _print_table(rows)
    else:
        click.echo(_aligned(rows))


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def _cells(row: PluginRow) -> tuple[str, ...]:
    listed = (", ".join(row.architectures), ", ".join(row.formats))
    return tuple(cell or "-" for cell in (row.name, row.version, row.distribution, *listed))


def _aligned(rows: Sequence[PluginRow]) -> str:
    """Columns of plain text; the error of a broken plugin stands under its line."""
    table = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in table
    ]
    for index in range(len(rows), 0, -1):
        error = rows[index - 1].error
        if error is not None:
            lines.insert(index + 1, f"  broken: {error}")
    return "\n".join(lines)


def _print_table(rows: Sequence[PluginRow]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(*(Text(cell, style="red" if row.error else "") for cell in _cells(row)))
    console = Console()
    console.print(table)
    for row in rows:
        if row.error is not None:
            console.print(Text(f"{row.name} is broken: {row.error}", style="red"))
