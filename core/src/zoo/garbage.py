"""Python's collector of cyclic garbage, where it would cost more than it finds."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """No collection inside: one walks through all objects of torch, a tenth of a second, and frees nothing.

    For code that makes many objects which stay: modules, vocabularies. A collector that was off stays off.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
