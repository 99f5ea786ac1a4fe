"""`zoo models`: what was pulled."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from zoo.hub import PulledModel


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
@click.option("--remove", metavar="NAME", help="Forget the model NAME and delete its files in zoo's cache.")
def models(as_json: bool, remove: str | None) -> None:
    """List the models that were pulled, or remove one."""
    from zoo.hub import CATALOGUE, load_records
    from zoo.hub import remove as remove_model
    from zoo.settings import Settings

    settings = Settings.from_env()
    if remove is not None:
        click.echo(_removed(remove_model(remove, settings)), err=True)
        return
    records = load_records(settings)
    if as_json:
        click.echo(json.dumps([_row(model) for model in records.models], indent=1))
    else:
        _print_table(records.models)
    for record in records.damaged:
        click.echo(f"{record.path} is damaged ({record.reason}); delete its folder and pull the model again", err=True)
    names = {model.name for model in records.models}
    if missing := [name for name in CATALOGUE if name not in names]:
        click.echo(f"to be had with `zoo pull`: {', '.join(missing)}, or ORG/REPO of the Hugging Face hub", err=True)


def _row(model: PulledModel) -> dict[str, object]:
    """One model for `--json`. `size` is in bytes; `fault` says why it cannot be used, or is null."""
    return {
        "name": model.name,
        "path": str(model.path),
        "size": model.size,
        "format": model.format,
        "licence": model.licence,
        "source": model.source,
        "date": model.date,
        "fault": model.fault(),
    }


def _print_table(found: tuple[PulledModel, ...]) -> None:
    from zoo.hub import human_size

    if not found:
        return
    table = [("NAME", "SIZE", "FORMAT", "LICENCE", "PATH")]
    table += [(model.name, human_size(model.size), model.format, model.licence, str(model.path)) for model in found]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
        click.echo("  ".join([*cells, row[4]]))
    for model in found:
        if fault := model.fault():
            click.echo(f"{model.name} cannot be used: {fault}; run `zoo pull {model.name}` to repair it", err=True)


def _removed(model: PulledModel) -> str:
    """What to say after a removal; files that other tools share stay where they are."""
    if all(file.path.is_relative_to(model.directory) for file in model.files):
        return f"removed {model.name}"
    repo = model.name.partition(":")[0]
    return (
        f"removed {model.name} from zoo; its files stay in the Hugging Face cache, which other tools share: "
        f"`hf cache rm model/{repo}` deletes them"
    )
