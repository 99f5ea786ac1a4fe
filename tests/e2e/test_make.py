"""The developer's verbs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERBS = ("help", "setup", "run", "test", "check", "sanitize", "bench", "dist", "clean")
# Python 3.11 or later is what zoo needs; both say that they are older or cannot run at all.
BROKEN_PYTHONS = {"old": "#!/bin/sh\nexit 1\n", "shim": "#!/bin/sh\necho 'command not found' >&2\nexit 127\n"}
NO_ENSUREPIP = '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; *version_info*) exec {python} "$@";; esac\nexit 1\n'


def _make(*arguments: str, prefix: tuple[str, ...] = (), cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # What an outer make exports is not for this one: flags, and the variables of its command line.
    hidden = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "TORCH", "PYTHON")
    outer = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [*prefix, "make", *arguments],
        cwd=cwd,
        env=outer,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that `make setup` reads, without an environment."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml", "core/pyproject.toml", "scripts/setup.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def _script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_help_lists_every_verb() -> None:
    done = _make("help")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^make (\w+)", done.stdout, re.M) == list(VERBS)


@pytest.mark.parametrize("kind", BROKEN_PYTHONS)
def test_setup_refuses_an_interpreter_that_does_not_serve(kind: str, checkout: Path) -> None:
    python = _script(checkout / "python", BROKEN_PYTHONS[kind])
    done = _make("setup", f"PYTHON={python}", cwd=checkout)
    assert done.returncode != 0
    assert "no Python 3.11 or later runs here" in done.stderr
    assert python in done.stderr
    assert done.stderr.count("setup:") == 1
    assert not (checkout / ".venv").exists()


def test_setup_names_the_package_that_lacks_and_leaves_nothing(checkout: Path) -> None:
    python = _script(checkout / "python", NO_ENSUREPIP.format(python=sys.executable))
    done = _make("setup", f"PYTHON={python}", cwd=checkout)
    assert done.returncode != 0
    assert "apt install python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def test_setup_removes_an_environment_that_failed_half_way(checkout: Path) -> None:
    stub = '#!/bin/sh\nif [ "$1" = -m ]; then mkdir -p "$VENV/bin"; exit 1; fi\nexit 0\n'
    python = _script(checkout / "python", stub.replace("$VENV", str(checkout / ".venv")))
    done = _make("setup", f"PYTHON={python}", cwd=checkout)
    assert done.returncode != 0
    assert not (checkout / ".venv").exists()


def test_second_run_needs_no_network(smollm2: Path) -> None:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0:
        pytest.skip("this user may not cut off the network (unshare -n)")
    first = _make("setup")
    assert first.returncode == 0, first.stderr
    done = _make("run", prefix=("unshare", "-n"))
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "setup:" not in done.stderr
