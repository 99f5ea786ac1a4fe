"""Huge pages for packed weights, got in the background.

A step reads all of the weights, and with pages of 4 KB the processor looks up a new address every 64 lines: decoding is
a tenth to a sixth faster on huge ones. Asking for them before memory is filled would delay the load instead, by seconds
where a hypervisor lends the memory. So they are collapsed later, one at a time, while nothing else is to be done.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

THREAD = "zoo-huge-pages"
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_COLLAPSE = 25  # MADV_COLLAPSE, since Linux 6.1
_SHARE = 0.05  # of one processor's time while the model computes
_REFUSED = frozenset({errno.EINVAL, errno.EPERM, errno.ENOSYS})


def huge_page_bytes() -> int:
    """Size of a huge page; 0 where the system has none or its administrator wants none to be used."""
    if sys.platform != "linux":
        return 0
    try:
        if "[never]" in (_SETTINGS / "enabled").read_text():
            return 0
        return int((_SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


def memory(nbytes: int) -> tuple[mmap.mmap, Tensor]:
    """Memory that nothing is written to yet, and uint8 [nbytes] on it, which begins where a huge page may."""
    align = huge_page_bytes() or mmap.PAGESIZE
    region = mmap.mmap(-1, nbytes + align, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(region, dtype=torch.uint8)
    start = -whole.data_ptr() % align
    return region, whole[start : start + nbytes]


def collapse_later(region: mmap.mmap, room: Tensor, calls: Callable[[], int]) -> None:
    """Move what `memory` gave into huge pages, by a thread that ends with it.

    `calls()` grows when a computation begins and when it ends, so it is odd in between; then the thread works
    for a twentieth of the time only. What the system refuses stays as it is.
    """
    size, start = huge_page_bytes(), room.data_ptr()
    places = range(start, start + len(room) - size + 1, size) if size else range(0)
    if places:
        threading.Thread(target=_collapse, args=(weakref.ref(region), places, calls), name=THREAD, daemon=True).start()


def wait() -> None:
    """Wait for all such threads of the process, before something is measured."""
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join()


def _collapse(region: weakref.ref[mmap.mmap], places: range, calls: Callable[[], int]) -> None:
    # By ctypes, which lets other threads of Python run meanwhile; mmap.madvise does not.
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for place in places:
        if region() is None:
            return
        began, seen = time.perf_counter(), calls()
        # If the memory is gone by now nothing happens, and other memory in its place would keep what it holds.
        failed = madvise(place, places.step, _COLLAPSE)
        if failed and ctypes.get_errno() in _REFUSED:
            return
        if seen % 2 or calls() != seen:
            time.sleep((time.perf_counter() - began) * (1 / _SHARE - 1))
