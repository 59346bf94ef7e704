"""Places inside state writes where a test can let a process die.

A file is armed with a number n: the n-th place that is passed from then on kills the process with
SIGKILL, once, and disarms. Nothing is armed unless a test does so.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def point_of(arm: str) -> Callable[[], None]:
    """Return the function to call at each place.

    Args:
        arm: the file; while it exists it holds how many places are to be passed, this one included.
    """
    lock = threading.Lock()
    passed = 0

    def point() -> None:
        nonlocal passed
        with lock:
            try:
                with open(arm) as file:
                    wanted = int(file.read() or 0)
            except FileNotFoundError:
                passed = 0
                return
            passed += 1
            if passed < wanted:
                return
            try:
                os.unlink(arm)  # of several processes only one dies
            except FileNotFoundError:
                passed = 0
                return
            os.kill(os.getpid(), signal.SIGKILL)

    return point
