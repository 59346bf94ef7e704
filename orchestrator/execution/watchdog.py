"""Finds the trials that hang."""

from __future__ import annotations

import math
from collections.abc import Iterable

from orchestrator.clock import Clock


class Watchdog:
    """Finds trials that have not reported for too long, in time during which the driver ran.

    A single-device trial reports at least every `worker.ALIVE_EVERY_S` while it trains. Before its
    first report it has `START_S` to start its process, import and load the dataset. The workers of
    a group report together, once per epoch: they have `EPOCHS` times the longest epoch so far, and
    `FIRST_EPOCH` times the timeout until the sweep's first epoch ends.
    """

    # If two passes lie this far apart, the driver slept (a closed laptop) and received no reports.
    STALL_S = 5.0
    START_S = 120.0
    EPOCHS = 5.0
    FIRST_EPOCH = 10.0

    def __init__(self, timeout_s: float, *, by_step: bool, clock: Clock) -> None:
        self.timeout_s, self.by_step, self._clock = timeout_s, by_step, clock
        self._longest_epoch_s = 0.0
        self._last_s: dict[str, float] = {}
        self._has_reported: set[str] = set()
        self._last_pass_s: float | None = None

    def on_report(self, key: str, epoch_s: float | None = None) -> None:
        """Note a report; `epoch_s` is the duration of the epoch that it ends, if any."""
        self._last_s[key] = self._clock.monotonic_s()
        self._has_reported.add(key)
        self._longest_epoch_s = max(self._longest_epoch_s, epoch_s or 0.0)

    def forget(self, key: str) -> None:
        """Stop watching a trial."""
        self._last_s.pop(key, None)
        self._has_reported.discard(key)

    def hanging(self, running: Iterable[str]) -> dict[str, float]:
        """Return the running trials that hang, each once, and the seconds since their last report.

        Call it every second or so.
        """
        now_s = self._clock.monotonic_s()
        if self._last_pass_s is not None and now_s - self._last_pass_s > self.STALL_S:
            stalled_s = now_s - self._last_pass_s
            self._last_s = {key: last_s + stalled_s for key, last_s in self._last_s.items()}
        self._last_pass_s = now_s
        limit_s = self.timeout_s
        if not self.by_step:
            epochs_s = self.EPOCHS * self._longest_epoch_s
            limit_s = max(limit_s, epochs_s) if epochs_s else self.FIRST_EPOCH * limit_s
        silent = {key: now_s - self._last_s.setdefault(key, now_s) for key in running}
        hanging = {
            key: silent_s
            for key, silent_s in silent.items()
            if silent_s > (limit_s if key in self._has_reported else max(limit_s, self.START_S))
        }
        self._last_s.update(dict.fromkeys(hanging, math.inf))
        return hanging
