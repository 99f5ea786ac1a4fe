"""How long something short takes the processor, on a machine that does other things too."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress


def processor_seconds(act: Callable[[], object], limit: float, ends_in: type[Exception] | None = None) -> float:
    """The least of up to five runs, or the first below `limit`. `ends_in`: an error that each run may raise.

    What other processes do to the caches, and a collection of garbage that falls into a run, only ever add to it.
    """
    least = float("inf")
    for _ in range(5):
        started = time.process_time()
        with suppress(*(() if ends_in is None else (ends_in,))):
            act()
        least = min(least, time.process_time() - started)
        if least < limit:
            break
    return least
