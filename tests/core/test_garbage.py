"""The collector rests while a model loads, and works afterwards, whatever came of it."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from zoo import LLM
from zoo.errors import ZooError
from zoo.garbage import paused


def test_a_load_that_fails_leaves_the_collector_on(tmp_path: Path) -> None:
    with pytest.raises(ZooError):
        LLM.load(tmp_path / "nothing.gguf")
    assert gc.isenabled()


def test_a_pause_ends_and_keeps_what_was_chosen() -> None:
    with paused():
        assert not gc.isenabled()
        with paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
