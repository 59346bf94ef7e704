"""Background threads that work in steps, and calls with a time limit.

A simulation calls the steps without threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class StepThread(threading.Thread):
    """A daemon thread that calls `step`, which returns the pause in seconds, None to end.

    `pause_s` is the pause before the first step.
    """

    def __init__(self, name: str, step: Callable[[], float | None], pause_s: float = 0.0) -> None:
        super().__init__(name=name, daemon=True)
        self._step, self._pause_s, self._wake = step, pause_s, threading.Event()

    def run(self) -> None:
        """Call the steps; `start` does so in the thread."""
        pause_s: float | None = self._pause_s
        while pause_s is not None:
            self._wake.wait(pause_s)
            self._wake.clear()
            pause_s = self._step()

    def wake(self) -> None:
        """Start the next step now instead of waiting for the end of the pause."""
        self._wake.set()


def run_within(
    limit_s: float, function: Callable[[], object], must_end: Callable[[], bool] = lambda: False
) -> None:
    """Run a function in a thread; raise its exception, or a `TimeoutError` after `limit_s`.

    `must_end` is called several times a second; if it returns true, `KeyboardInterrupt` is raised.
    The thread stays until this process ends, because Linux kills the servers that Ray starts when
    the thread that started them ends (`PR_SET_PDEATHSIG`).
    """
    raised: list[BaseException] = []
    has_returned = threading.Event()

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)
        has_returned.set()
        threading.Event().wait()

    threading.Thread(target=run, name="limited", daemon=True).start()
    end_s = time.monotonic() + limit_s
    while not has_returned.wait(0.2):
        if must_end():
            raise KeyboardInterrupt
        if time.monotonic() > end_s:
            raise TimeoutError(f"It took longer than {limit_s:g} s.")
    if raised:
        raise raised[0]
