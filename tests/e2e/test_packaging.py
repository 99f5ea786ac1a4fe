"""The wheels: what is in them, and that they work in an environment of their own, away from the checkout.

The environment's third-party packages are those of the environment that runs the tests, put on its path by a .pth file.
A path added so runs no .pth file of its own, which is how the editable zoo of the checkout stays out.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = sorted(path.parent for path in (ROOT / "core/pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")))
CORE = ROOT / "core"
ALL = ROOT / "plugins/all"  # has no code: it brings the others
PACKAGES = [folder for folder in DISTRIBUTIONS if folder != ALL]


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=900)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of every distribution, by the distribution's folder."""
    built = {}
    for folder in DISTRIBUTIONS:
        place = tmp_path_factory.mktemp(folder.name)
        _pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", place, folder)
        (built[folder.name],) = place.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheels installed."""
    place = tmp_path_factory.mktemp("venv")
    venv.create(place, with_pip=False)
    _pip("--python", place / "bin/python", "install", "--no-deps", "--no-index", *wheels.values())
    (library,) = place.glob("lib/python*/site-packages")
    outer = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (library / "zz_third_party.pth").write_text("".join(f"{path}\n" for path in outer))
    return place


def _run(environment: Path, cwd: Path, *command: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ZOO_PLUGINS")}
    done = subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        cwd=cwd,
        env=clean,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_wheel_holds_the_package_and_nothing_else(folder: Path, wheels: dict[str, Path]) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    (package,) = (folder / "src").iterdir()
    with zipfile.ZipFile(wheels[folder.name]) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    shipped = {name for name in names if ".dist-info/" not in name}
    present = {
        path.relative_to(folder / "src").as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == present
    assert f"{package.name}/py.typed" in shipped
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    for requirement in project["project"]["dependencies"]:
        name = requirement.partition(">")[0]
        assert f"Requires-Dist: {name}" in metadata


# Parts of a declared distribution, or brought by one that cannot do without it.
BROUGHT = {"starlette": "fastapi", "markupsafe": "jinja2"}


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_what_is_imported_is_declared(folder: Path) -> None:
    """The environment of these tests has everything, so a dependency that is not declared would not be missed."""
    names = [tomllib.loads((path / "pyproject.toml").read_text())["project"]["dependencies"] for path in (folder, CORE)]
    declared = {re.split("[<>=]", name)[0] for name in [*names[0], *names[1]]}
    known = importlib.metadata.packages_distributions()
    for path in (folder / "src").rglob("*.py"):
        if "testing" in path.parts:  # for authors, whose tests have pytest
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            for top in {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names):
                if top != "zoo" and not top.startswith("zoo_"):
                    owners = {BROUGHT.get(top, owner.lower().replace("_", "-")) for owner in known[top]}
                    assert owners & declared, f"{path.name} imports {top}"


def test_zoo_all_brings_every_distribution_and_no_code(wheels: dict[str, Path]) -> None:
    wanted = {tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"] for folder in PACKAGES}
    listed = tomllib.loads((ALL / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {requirement.partition(">")[0] for requirement in listed} == wanted
    with zipfile.ZipFile(wheels["all"]) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assert all(".dist-info/" in name for name in names)
    assert all(f"Requires-Dist: {name}" in metadata for name in wanted)


def test_core_ships_its_data_file(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["core"]) as archive:
        assert json.loads(archive.read("zoo/tokenizer/pretokenizers.json"))


@pytest.mark.parametrize("folder", PACKAGES[1:], ids=lambda folder: folder.name)
def test_every_plugin_is_in_the_layer_contract(folder: Path) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (package,) = (folder / "src").iterdir()
    assert package.name in settings["root_packages"]
    authors, core = settings["contracts"][1:3]
    assert package.name in authors["source_modules"]
    assert package.name in core["forbidden_modules"]


@pytest.mark.parametrize("module", ["zoo", "zoo_llama"])
def test_installed_package_lies_in_the_environment(module: str, environment: Path, tmp_path: Path) -> None:
    where = _run(environment, tmp_path, "python", "-c", f"import {module}; print({module}.__file__)")
    assert Path(where.strip()).is_relative_to(environment)


def test_installed_command_says_its_version(environment: Path, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "core/pyproject.toml").read_text())["project"]["version"]
    assert _run(environment, tmp_path, "zoo", "--version").split()[-1] == version


def test_installed_command_finds_the_plugin(environment: Path, tmp_path: Path) -> None:
    rows = json.loads(_run(environment, tmp_path, "zoo", "plugins", "--json"))["plugins"]
    (row,) = [row for row in rows if row["distribution"] == "zoo-llama"]
    assert row["name"] == "llama"
    assert row["error"] is None


def test_installed_command_answers(environment: Path, tmp_path: Path, smollm2: Path) -> None:
    prompt = ("--raw", "The capital of France is", "--max-tokens", "8", "--temperature", "0")
    assert "Paris" in _run(environment, tmp_path, "zoo", "run", "--model-path", str(smollm2), *prompt)
