"""How the CPU library is built and shipped: with a compiler, without one, from a source archive, killed on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core"
NOWHERE = "/nonexistent/c++"
# Stands for a compiler where only the build itself is looked at: it wants its source to be there and writes its output.
COMPILER = """#!/bin/sh
for word; do
    case "$last" in -c) test -f "$word" || exit 1;; -o) output=$word;; esac
    last=$word
done
case "$*" in *{hang}*) : > {started}; exec sleep 60;; esac
echo "a library" > "$output"
"""


def _compiler(folder: Path, hang: str = "no such word") -> tuple[str, Path]:
    """A stand-in for a compiler, which hangs when a word is on its command line, and the file that says it does."""
    script, started = folder / "compiler", folder / "started"
    script.write_text(COMPILER.format(hang=f'"{hang}"', started=started))
    script.chmod(0o755)
    return str(script), started


def _sources(folder: Path) -> Path:
    """A copy of what the build reads, so that its objects stay out of the checkout."""
    shutil.copytree(CORE / "native", folder / "native", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "native/build.py"


def _wheel(source: Path, place: Path, compiler: str) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(place), str(source)],
        env={**os.environ, "CXX": compiler},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    return wheel


def _environment(wheel: Path, place: Path) -> Path:
    """A virtual environment with core's wheel; the third-party packages are those that the tests run with."""
    venv.create(place, with_pip=False)
    command = [sys.executable, "-m", "pip", "--quiet", "--python", str(place / "bin/python"), "install", "--no-deps"]
    subprocess.run([*command, "--no-index", str(wheel)], check=True, timeout=300)
    (library,) = place.glob("lib/python*/site-packages")
    outer = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (library / "zz_third_party.pth").write_text("".join(f"{path}\n" for path in outer))
    return place / "bin"


def _doctor(binaries: Path, cwd: Path) -> dict[str, object]:
    hidden = ("PYTHONPATH", "ZOO_PLUGINS", "ZOO_CPU_ISA")
    clean = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(binaries / "zoo"), "doctor", "--json"], cwd=cwd, env=clean, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return report


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not here")
def test_a_wheel_holds_the_library_and_names_its_platform(tmp_path: Path) -> None:
    wheel = _wheel(CORE, tmp_path, "g++")
    found = re.fullmatch(r"zoo_core-[\d.]+-py3-none-manylinux_2_(\d+)_(x86_64|aarch64)\.whl", wheel.name)
    assert found, wheel.name
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read("zoo/_native/libzoo_cpu.so")
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))).decode()
    assert "Root-Is-Purelib: false" in metadata
    asked = [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", library)]
    assert max(asked) == int(found[1])
    assert "instruction set" in str(_doctor(_environment(wheel, tmp_path / "venv"), tmp_path)["cpu_kernels"])


def test_without_a_compiler_the_reference_answers_and_doctor_says_so(tmp_path: Path) -> None:
    wheel = _wheel(CORE, tmp_path, NOWHERE)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "_native" in name]
    report = _doctor(_environment(wheel, tmp_path / "venv"), tmp_path)
    assert re.search("none: .*without a C\\+\\+ compiler .*apt install g\\+\\+.*slower", str(report["cpu_kernels"]))
    kernels = report["kernels"]
    assert isinstance(kernels, dict)
    assert {choice["backend"] for choice in kernels["cpu"].values()} == {"reference"}


@pytest.mark.parametrize("path", ["", "empty"])
def test_without_a_compiler_the_build_says_what_to_install(path: str, tmp_path: Path) -> None:
    build, (library, before) = _sources(tmp_path), _old_library(tmp_path)
    environment = {"PATH": str(tmp_path / path)} if path else {**os.environ, "CXX": NOWHERE}
    done = subprocess.run(
        [sys.executable, str(build), "--output", str(library.parent)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.search(f"CXX names {NOWHERE}" if not path else r"apt install g\+\+", done.stderr)
    assert library.read_bytes() == before


def _old_library(folder: Path) -> tuple[Path, bytes]:
    library = folder / "package/libzoo_cpu.so"
    library.parent.mkdir()
    library.write_bytes(b"what was there before")
    return library, library.read_bytes()


@pytest.mark.parametrize("stage", ["-DZOO_ISA=avx2", "-shared"], ids=["compiling", "linking"])
def test_a_killed_build_leaves_the_old_library(stage: str, tmp_path: Path) -> None:
    build, (library, before) = _sources(tmp_path), _old_library(tmp_path)
    compiler, started = _compiler(tmp_path, stage)
    command = [sys.executable, str(build), "--machine", "x86_64", "--output", str(library.parent)]
    environment = {**os.environ, "CXX": compiler}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not started.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert started.exists()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert library.read_bytes() == before
    # What follows goes on from there; nothing half written is taken for an object.
    _compiler(tmp_path)
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert library.read_bytes() == b"a library\n"


def test_a_source_archive_has_all_that_a_build_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=CORE, check=True, timeout=300, capture_output=True)
    (archive,) = tmp_path.glob("zoo_core-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    source = tmp_path / archive.name.removesuffix(".tar.gz")

    def files(folder: Path) -> set[str]:
        return {
            path.relative_to(folder).as_posix()
            for part in ("native", "src")
            for path in (folder / part).rglob("*")
            if path.is_file() and not {"__pycache__", "_native"} & set(path.parts)
        }

    assert files(source) == files(CORE)
    compiler, _ = _compiler(tmp_path)
    with zipfile.ZipFile(_wheel(source, tmp_path / "wheels", compiler)) as built:
        assert built.read("zoo/_native/libzoo_cpu.so") == b"a library\n"


@pytest.mark.parametrize("folder", sorted((ROOT / "plugins").iterdir()), ids=lambda folder: folder.name)
def test_a_plugin_is_pure_and_builds_from_its_source_archive(folder: Path, tmp_path: Path) -> None:
    if not (folder / "pyproject.toml").is_file():
        pytest.skip(f"{folder.name} is no distribution")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=folder, check=True, timeout=300, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    assert _wheel(archive, tmp_path / "wheels", NOWHERE).name.endswith("-py3-none-any.whl")
