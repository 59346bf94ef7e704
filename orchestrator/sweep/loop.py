"""Runs the steps of a background part in a thread of its own; a simulation calls them itself."""

from __future__ import annotations

import threading
from collections.abc import Callable

from orchestrator.clock import Clock
from orchestrator.sweep.signals import Interruption

# Longest wait for the background threads at the end of a sweep; an interrupted sweep must end
# within half a minute.
_LIMIT_S, _INTERRUPTED_LIMIT_S = 300.0, 15.0


class EndLimit:
    """Tells when the end of a sweep must no longer wait for background threads."""

    def __init__(self, interruption: Interruption, clock: Clock) -> None:
        self._interruption, self._clock = interruption, clock
        self._began_s = clock.monotonic_s()
        self._interrupted_s: float | None = None

    def is_over(self) -> bool:
        """Return whether the wait has lasted long enough; call it often."""
        now_s = self._clock.monotonic_s()
        if self._interruption.wanted.is_set() and self._interrupted_s is None:
            self._interrupted_s = now_s
        interrupted_for_s = now_s - (self._interrupted_s or now_s)
        return (
            self._interruption.urgent.is_set()
            or now_s - self._began_s > _LIMIT_S
            or interrupted_for_s > _INTERRUPTED_LIMIT_S
        )


class StepThread:
    """A thread that calls `step` again and again.

    `step` returns the seconds until its next call, or None when it was the last one.
    """

    def __init__(self, name: str, step: Callable[[], float | None]) -> None:
        self._step, self._wake = step, threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread with the first step."""
        self._thread.start()

    def wake(self) -> None:
        """Start the next step now instead of waiting for the end of the pause."""
        self._wake.set()

    def join(self, limit: EndLimit, while_waiting: Callable[[], None] = lambda: None) -> None:
        """Wait for the last step, up to the limit, and call a function several times a second."""
        while self._thread.is_alive() and not limit.is_over():
            self._thread.join(0.2)
            while_waiting()

    def _run(self) -> None:
        while (pause_s := self._step()) is not None:
            self._wake.wait(pause_s)
            self._wake.clear()
