"""The end of a process waits for what is computed and lets nothing new begin."""

from __future__ import annotations

import os
import threading

from zoo.engine import ending
from zoo.engine.ending import _Gate


def test_the_end_waits_for_who_is_inside_and_lets_nobody_in() -> None:
    gate = _Gate()
    inside, leave, closed, late = (threading.Event() for _ in range(4))

    def work() -> None:
        with gate.computing():
            inside.set()
            assert leave.wait(60)
            with gate.computing():  # who is inside already comes in again
                pass

    def close() -> None:
        gate.close()
        closed.set()

    def come_late() -> None:
        with gate.computing():
            late.set()

    threads = [threading.Thread(target=work, daemon=True), threading.Thread(target=close, daemon=True)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    assert not closed.wait(0.2)
    leave.set()
    assert closed.wait(60)
    with gate.computing():  # what the main thread does while the process ends is in nobody's way
        pass
    threads.append(threading.Thread(target=come_late, daemon=True))
    threads[2].start()
    assert not late.wait(0.2)
    with gate._changed:
        gate._closed = False
        gate._changed.notify_all()
    for thread in threads:
        thread.join(60)
    assert late.is_set()


def test_a_forked_child_waits_for_nobody() -> None:
    with ending.computing():
        child = os.fork()
        if child == 0:
            os._exit(ending._gate._inside)
    assert os.waitpid(child, 0)[1] == 0
