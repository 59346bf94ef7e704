"""Which trials hang."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable


class Watchdog:
    """Says which trials have been silent for too long, on a clock that stops when the driver does.

    A single-device trial gives a sign at least every `SIGN_EVERY_S` of training, and before the
    first one it may take `START_S` to start: a process, imports, the dataset. Workers of a group
    speak together, once per epoch; they get five times the longest epoch seen so far, and the
    sweep's first epoch, of which nothing is known, ten times the limit.
    """

    # A driver that was asleep this long (a closed laptop) has heard nobody, whoever spoke.
    STALL_S = 5.0
    START_S = 120.0
    EPOCHS = 5.0
    FIRST_EPOCH = 10.0

    def __init__(self, timeout_s: float, *, by_step: bool) -> None:
        self.timeout_s, self.by_step = timeout_s, by_step
        self._longest_epoch_s = 0.0
        self._last: dict[str, float] = {}
        self._heard: set[str] = set()
        self._looked_s: float | None = None

    def sign_of_life(self, key: str, epoch_s: float | None = None) -> None:
        """Take a report; `epoch_s` is how long its epoch took, where it ends one."""
        self._last[key] = time.monotonic()
        self._heard.add(key)
        self._longest_epoch_s = max(self._longest_epoch_s, epoch_s or 0.0)

    def forget(self, key: str) -> None:
        """Watch a trial no longer."""
        self._last.pop(key, None)
        self._heard.discard(key)

    def hanging(self, running: Iterable[str]) -> dict[str, float]:
        """Return those of the running trials that hang, and for how many seconds; each once."""
        now = time.monotonic()
        if self._looked_s is not None and now - self._looked_s > self.STALL_S:
            stalled_s = now - self._looked_s
            self._last = {key: last + stalled_s for key, last in self._last.items()}
        self._looked_s = now
        limit_s = self.timeout_s
        if not self.by_step:
            own_s = self.EPOCHS * self._longest_epoch_s
            limit_s = max(limit_s, own_s) if own_s else self.FIRST_EPOCH * limit_s
        silent = {key: now - self._last.setdefault(key, now) for key in running}
        hanging = {
            key: silent_s
            for key, silent_s in silent.items()
            if silent_s > (limit_s if key in self._heard else max(limit_s, self.START_S))
        }
        self._last.update(dict.fromkeys(hanging, math.inf))
        return hanging
