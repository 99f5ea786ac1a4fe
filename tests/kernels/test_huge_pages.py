"""Packed weights move into huge pages in the background: the same bytes, at no cost to what computes."""

from __future__ import annotations

import ctypes
import gc
import mmap
import re
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from zoo.weights import pages

SIZE = pages.huge_page_bytes()
PAGES = 4

pytestmark = pytest.mark.skipif(not SIZE, reason="the system has no transparent huge pages, or forbids them")


_others: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    _others.update(threading.enumerate())  # models of other tests may have theirs
    yield
    assert not threads()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == pages.THREAD and thread not in _others]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What threads were started for: one that finds nothing to do is over before anybody can see it."""
    seen: list[object] = []
    monkeypatch.setattr(pages, "_collapse", lambda *work: seen.append(work))
    return seen


def in_huge_pages(address: int) -> int:
    """Bytes of the map at an address that lie in huge pages."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            found += int(line.split()[1]) << 10
    return found


def filled(nbytes: int) -> tuple[mmap.mmap, torch.Tensor]:
    memory, room = pages.memory(nbytes)
    room.copy_(torch.arange(nbytes, dtype=torch.int32).to(torch.uint8))
    return memory, room


def supported() -> bool:
    """Whether the kernel collapses pages when it is asked to."""
    memory, room = filled(SIZE)
    madvise = ctypes.CDLL(None).madvise
    return madvise(ctypes.c_void_p(room.data_ptr()), ctypes.c_size_t(SIZE), pages._COLLAPSE) == 0 and bool(memory)


needs_collapse = pytest.mark.skipif(bool(SIZE) and not supported(), reason="this kernel has no MADV_COLLAPSE")


@needs_collapse
def test_all_whole_pages_become_huge_and_hold_what_they_held() -> None:
    memory, room = filled(PAGES * SIZE + 4096)
    expected = room.clone()
    assert room.data_ptr() % SIZE == 0
    assert in_huge_pages(room.data_ptr()) == 0
    pages.collapse_later(memory, room, lambda: 0)
    pages.wait()
    assert in_huge_pages(room.data_ptr()) == PAGES * SIZE
    assert torch.equal(room, expected)


@needs_collapse
def test_it_waits_most_of_the_time_while_the_model_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    memory, room = filled(PAGES * SIZE)
    for calls in (lambda: 1, iter(range(0, 1000, 2)).__next__):  # in the middle of a call, and one call after the other
        waits.clear()
        pages.collapse_later(memory, room, calls)
        pages.wait()
        assert len(waits) == PAGES
        assert min(waits) > 0
    waits.clear()
    pages.collapse_later(memory, room, lambda: 6)
    pages.wait()
    assert not waits, "nothing computes"


def test_it_ends_with_the_memory() -> None:
    memory, room = filled(PAGES * SIZE)
    at_work, go_on = threading.Event(), threading.Event()

    def calls() -> int:
        at_work.set()
        assert go_on.wait(60)
        return 0

    pages.collapse_later(memory, room, calls)
    assert at_work.wait(60)
    gone = weakref.ref(memory)
    del memory, room
    gc.collect()
    assert gone() is None, "the thread keeps the memory of a closed model"
    go_on.set()
    pages.wait()


@pytest.mark.parametrize("enabled", ["always madvise [never]", "nonsense", None])
def test_nothing_is_tried_where_it_is_forbidden(
    enabled: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[object]
) -> None:
    monkeypatch.setattr(pages, "_SETTINGS", tmp_path)
    if enabled is not None:
        (tmp_path / "enabled").write_text(enabled)
    assert pages.huge_page_bytes() == 0
    memory, room = filled(PAGES * SIZE)
    pages.collapse_later(memory, room, lambda: 0)
    pages.wait()
    assert not started


def test_less_than_a_huge_page_stays_small(started: list[object]) -> None:
    memory, room = filled(SIZE - 4096)
    pages.collapse_later(memory, room, lambda: 0)
    pages.wait()
    assert not started
