"""Settings from the environment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from zoo.errors import UsageError
from zoo.settings import Settings

HOME = {"HOME": "/home/ann"}


@pytest.fixture(autouse=True)
def on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")


def test_defaults() -> None:
    assert Settings.from_env(HOME) == Settings(Path("/home/ann/.cache/zoo"), None, None, False)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/zoo"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/ann/.cache/zoo"),
        ({"XDG_CACHE_HOME": ""}, "/home/ann/.cache/zoo"),
        ({"ZOO_CACHE": "/big/disk", "XDG_CACHE_HOME": "/xdg"}, "/big/disk"),
        ({"ZOO_CACHE": "~/models"}, "/home/ann/models"),
        ({"ZOO_CACHE": ""}, "/home/ann/.cache/zoo"),
    ],
)
def test_cache_directory(environ: dict[str, str], expected: str) -> None:
    assert Settings.from_env(HOME | environ).cache_dir == Path(expected)


def test_a_relative_cache_directory_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.from_env(HOME | {"ZOO_CACHE": "here"}).cache_dir == tmp_path / "here"


def test_cache_directory_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert Settings.from_env(HOME).cache_dir == Path("/home/ann/Library/Caches/zoo")
    assert Settings.from_env(HOME | {"ZOO_CACHE": "/big"}).cache_dir == Path("/big")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a", ("a",)), ("a,b", ("a", "b")), (" a , b ", ("a", "b")), ("", None), ("  ", None)],
)
def test_plugins(value: str, expected: tuple[str, ...] | None) -> None:
    assert Settings.from_env(HOME | {"ZOO_PLUGINS": value}).plugins == expected


@pytest.mark.parametrize("value", ["a,,b", ",", "a,"])
def test_plugins_with_an_empty_name(value: str) -> None:
    with pytest.raises(UsageError, match=f"ZOO_PLUGINS is '{value}', with an empty name"):
        Settings.from_env(HOME | {"ZOO_PLUGINS": value})


def test_cpu_isa() -> None:
    assert Settings.from_env(HOME | {"ZOO_CPU_ISA": "avx2"}).cpu_isa == "avx2"
    assert Settings.from_env(HOME | {"ZOO_CPU_ISA": ""}).cpu_isa is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", True),
        ("true", True),
        ("YES", True),
        ("on", True),
        ("0", False),
        ("", False),
        ("No", False),
        ("off", False),
    ],
)
def test_debug(value: str, expected: bool) -> None:
    assert Settings.from_env(HOME | {"ZOO_DEBUG": value}).debug is expected


@pytest.mark.parametrize(("value", "expected"), [("", True), ("on", True), ("1", True), ("off", False), ("0", False)])
def test_cpu_repack(value: str, expected: bool) -> None:
    assert Settings.from_env(HOME).cpu_repack
    assert Settings.from_env(HOME | {"ZOO_CPU_REPACK": value}).cpu_repack is expected
    with pytest.raises(UsageError, match="ZOO_CPU_REPACK is 'q4'; set it to 1 or 0"):
        Settings.from_env(HOME | {"ZOO_CPU_REPACK": "q4"})


def test_debug_that_means_nothing() -> None:
    with pytest.raises(UsageError, match="ZOO_DEBUG is 'maybe'; set it to 1 or 0"):
        Settings.from_env(HOME | {"ZOO_DEBUG": "maybe"})


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(UsageError, match="home directory is not known; set ZOO_CACHE"):
        Settings.from_env({})
    assert Settings.from_env({"ZOO_CACHE": "/big"}).cache_dir == Path("/big")


def test_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_PLUGINS", "only")
    assert Settings.from_env().plugins == ("only",)
