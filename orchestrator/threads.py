"""Background threads that work in steps, which a simulation calls itself instead."""

from __future__ import annotations

import threading
from collections.abc import Callable


class StepThread(threading.Thread):
    """A daemon thread that calls `step`, which returns the pause in seconds, None to end."""

    def __init__(self, name: str, step: Callable[[], float | None]) -> None:
        super().__init__(name=name, daemon=True)
        self._step, self._wake = step, threading.Event()

    def run(self) -> None:
        """Call the steps; `start` does so in the thread."""
        while (pause_s := self._step()) is not None:
            self._wake.wait(pause_s)
            self._wake.clear()

    def wake(self) -> None:
        """Start the next step now instead of waiting for the end of the pause."""
        self._wake.set()
