"""`zoo doctor`: what this machine offers, which kernels answer, and why not faster ones."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import click

from zoo import __version__
from zoo.settings import Settings


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Say what this machine offers, which kernels are in use, and which plugins are broken."""
    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    machine = report["machine"]
    click.echo(f"zoo {report['zoo']}, Python {machine['python']}, torch {machine['torch']}, {machine['platform']}")
    click.echo(
        f"CPU: {machine['cores']} cores, {machine['threads']} threads in use, {machine['memory_gb']:.1f} GB memory"
    )
    click.echo(f"CPU kernels: {report['cpu_kernels']}")
    click.echo("GPU: " + (", ".join(machine["gpus"]) or "none that torch can use"))
    click.echo(f"cache: {report['cache_dir']}")
    for device, ops in report["kernels"].items():
        click.echo(f"kernels on {device}:")
        alike: dict[tuple[str, str], list[str]] = {}  # a reason is often that of every op
        for op, choice in ops.items():
            refused = "".join(f"; not {name}: {reason}" for name, reason in choice["refused"])
            alike.setdefault((choice["backend"], refused), []).append(op)
        for (backend, refused), names in alike.items():
            click.echo(f"  {backend:10} {', '.join(names)}{refused}")
    for name, error in report["broken_plugins"].items():
        click.echo(f"broken plugin {name}: {error}")


def examine() -> dict[str, Any]:
    """Everything the report says, as JSON values."""
    import psutil
    import torch

    from zoo.kernels.native import library
    from zoo.kernels.registry import OPS, choose
    from zoo.plugin.manager import PluginManager

    settings = Settings.from_env()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    kernels = {}
    for device in ["cpu", *(["cuda"] if gpus else [])]:
        choices = {op: choose(op, device) for op in OPS}
        kernels[device] = {op: {"backend": c.backend, "refused": list(c.refused)} for op, c in choices.items()}
    return {
        "zoo": __version__,
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gb": psutil.virtual_memory().total / 1e9,
            "gpus": gpus,
        },
        "cpu_kernels": _cpu_kernels(*library.usable()),
        "cache_dir": str(settings.cache_dir),
        "kernels": kernels,
        "broken_plugins": {row.name: row.error for row in PluginManager.discover(settings).rows if row.error},
    }


def _cpu_kernels(usable: bool, reason: str) -> str:
    """One line on the native library: its instruction set and threads, or why it is not used."""
    from zoo.kernels.native.pool import physical_cores

    return f"{reason}, {physical_cores()} threads unless --threads says otherwise" if usable else f"none: {reason}"
