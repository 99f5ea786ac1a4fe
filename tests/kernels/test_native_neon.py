"""The CPU library for 64-bit ARM: cross-compiled, and its C++ tests run by an emulator."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"no {' and no '.join(MISSING)} (apt-get install g++-aarch64-linux-gnu qemu-user)"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program. Its objects stay in the checkout's build folder, as those of the library do."""
    place = tmp_path_factory.mktemp("aarch64")
    command = [
        sys.executable,
        str(ROOT / "core/native/build.py"),
        "--test",
        "--machine",
        "aarch64",
        "--output",
        str(place),
    ]
    done = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", "CXX": COMPILER}, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return place / "zoo_cpu_test"


def _run(program: Path, processor: str, *tests: str) -> str:
    command = [EMULATOR, "-L", "/usr/aarch64-linux-gnu", "-cpu", processor, str(program), *tests]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("passed\n")
    return done.stdout


def test_every_kernel_agrees_with_the_scalar_one(program: Path) -> None:
    said = _run(program, "max", "quick")
    assert said.startswith("instruction sets: i8mm dotprod scalar\n")


@pytest.mark.parametrize(
    ("processor", "found"),
    [("cortex-a76", "i8mm (not run) dotprod scalar"), ("cortex-a72", "i8mm (not run) dotprod (not run) scalar")],
)
def test_a_processor_gets_what_it_has(program: Path, processor: str, found: str) -> None:
    assert _run(program, processor, "small").startswith(f"instruction sets: {found}\n")
