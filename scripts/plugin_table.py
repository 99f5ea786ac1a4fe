"""Write the table of plugins in README.md from the plugins themselves. `--check`: only say whether it is up to date."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- plugins: made by scripts/plugin_table.py -->\n", "<!-- end of plugins -->\n"


def row(folder: Path) -> str | None:
    """The line of a distribution; None for one without a plugin."""
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    entries = project.get("entry-points", {}).get("zoo", {})
    if not entries:
        return None
    claims = []
    for reference in entries.values():
        module, _, name = reference.partition(":")
        claims += [claim for claim in getattr(importlib.import_module(module), name).claims if claim.runs]
    hf = dict.fromkeys(claim.hf for claim in claims if claim.hf)
    gguf = dict.fromkeys(claim.gguf for claim in claims if claim.gguf)
    models = re.sub(r"^.* for zoo: (.*), from .*$", r"\1", project["description"])
    names = (", ".join(f"`{name}`" for name in table) for table in (hf, gguf))
    return f"| [{project['name']}]({folder.relative_to(ROOT)}/README.md) | {models} | {' | '.join(names)} |\n"


def main() -> None:
    """Rewrite the table, or with --check exit with 1 if it would change."""
    folders = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
    lines = [line for folder in folders if (line := row(folder))]
    head = "| distribution | models | architectures in config.json | in GGUF |\n|---|---|---|---|\n"
    readme = ROOT / "README.md"
    before = readme.read_text()
    start, end = before.index(BEGIN) + len(BEGIN), before.index(END)
    after = before[:start] + head + "".join(lines) + before[end:]
    if "--check" in sys.argv[1:]:
        if after != before:
            sys.exit("the table of plugins in README.md is out of date: run python scripts/plugin_table.py")
    else:
        readme.write_text(after)


if __name__ == "__main__":
    main()
