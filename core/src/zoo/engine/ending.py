"""The end of the process while a daemon thread computes."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

_PATIENCE_S = 30.0


class _Gate:
    """Closed by the main thread when the process ends: it waits for those that are inside, and nobody comes in after.

    Until Python 3.14 a daemon thread that asks for the interpreter while that ends is unwound where it stands. In the
    middle of an operation of torch these are frames of C++ that must not be unwound, and the process aborts.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False
        self._mine = threading.local()  # how often this thread is inside

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Torch may be called inside. Does not come back in a daemon thread when the process ends."""
        depth = getattr(self._mine, "depth", 0)
        if depth == 0:
            with self._changed:
                if threading.current_thread() is not threading.main_thread():
                    self._changed.wait_for(lambda: not self._closed)
                self._inside += 1
        self._mine.depth = depth + 1
        try:
            yield
        finally:
            self._mine.depth = depth
            if depth == 0:
                with self._changed:
                    self._inside -= 1
                    if self._closed:
                        self._changed.notify_all()

    def close(self) -> None:
        """Wait for what is computed, though not for ever: a device may hang."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._inside == 0, _PATIENCE_S)


_gate = _Gate()


def _after_fork() -> None:
    """A child has none of the threads that were inside."""
    global _gate
    _gate = _Gate()


atexit.register(lambda: _gate.close())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def computing() -> AbstractContextManager[None]:
    """What torch computes inside is waited for when the process ends."""
    # The main thread ends the process itself, so it is not inside then.
    return _NOTHING if threading.current_thread() is threading.main_thread() else _gate.computing()


_NOTHING = nullcontext()
