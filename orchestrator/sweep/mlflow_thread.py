"""The background threads that keep MLflow and the disk in line with the ledger.

No trial waits for them, and neither waits for the other: an MLflow that is down must not let the
disk fill up.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from orchestrator.ledger import retention
from orchestrator.redaction import redacted
from orchestrator.storage.paths import SweepPaths
from orchestrator.sweep.signals import Interruption
from orchestrator.tracking import client
from orchestrator.tracking.tracker import Tracker

if TYPE_CHECKING:
    from rich.console import Console

_log = logging.getLogger(__name__)

# The user is told when MLflow has been behind for this long.
_TELL_AFTER_S = 10.0
# Whoever stops a sweep waits half a minute for its end, not longer.
_INTERRUPTED_LIMIT_S, _LIMIT_S = 15.0, 300.0
# MLflow is told of the first epoch, or of what there is after so long: importing it and making its
# database keep a core busy for 3 s, which the first trials need more, to start.
_FIRST_AFTER_S = 10.0
# How long a pass that failed is waited with, at most.
_LONGEST_PAUSE_S = 10.0
# Before the end, what failed is tried again after these pauses.
_LAST_PAUSES_S = (1.0, 3.0)


class MlflowThread:
    """Both threads. `start`, `tell` often, `finish` once."""

    def __init__(self, tracker: Tracker, paths: SweepPaths) -> None:
        self.tracker, self.paths = tracker, paths
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=run.__name__, daemon=True)
            for run in (self._keep_mlflow, self._keep_disk)
        ]
        self._clean: set[str] = set()
        self._outcome: str | None = None
        self._has_all = False
        self._error: Exception | None = None  # of the last pass
        self._pass_began_s: float | None = None
        self._in_line_s = time.monotonic()  # when MLflow last had everything
        self._told_s: float | None = None  # when the user was told that it is behind

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def tell(self, console: Console) -> None:
        """Say once that MLflow is behind, and once that it has caught up."""
        trouble = self._trouble()
        if self._told_s is not None:
            if self._in_line_s > self._told_s:
                self._told_s = None
                console.print("MLflow has caught up.", soft_wrap=True)
        elif trouble is not None:
            self._told_s = time.monotonic()
            console.print(
                f"MLflow at {redacted(self.tracker.uri)} is behind: {trouble} The trials go on; "
                "the ledger keeps what MLflow lacks.",
                soft_wrap=True,
                highlight=False,
                markup=False,
                style="yellow",
            )

    def finish(self, console: Console, outcome: str, interruption: Interruption) -> None:
        """Write the rest, for a limited time: `--resume` writes what is missing then."""
        self._outcome = outcome
        self._stop.set()
        begun_s = time.monotonic()
        stopped_s = None
        while any(thread.is_alive() for thread in self._threads):
            now_s = time.monotonic()
            if interruption.wanted.is_set() and stopped_s is None:
                stopped_s = now_s
            if interruption.urgent.is_set() or now_s - begun_s > _LIMIT_S:
                break
            if stopped_s is not None and now_s - stopped_s > _INTERRUPTED_LIMIT_S:
                break
            self._threads[0].join(timeout=0.2)
            if not self._threads[0].is_alive():
                self._threads[1].join(timeout=0.2)
            self.tell(console)
        if not self._has_all:
            console.print(
                f"MLflow at {redacted(self.tracker.uri)} does not have everything: "
                f"{self._reason() or 'it does not answer.'} The ledger has it; the same command "
                "with --resume writes the rest.",
                soft_wrap=True,
                highlight=False,
                markup=False,
                style="yellow",
            )

    def _trouble(self) -> str | None:
        """Return why MLflow is behind, where that has lasted long enough to be told."""
        now_s = time.monotonic()
        error = self._error
        if error is not None and client.advice(error, self.tracker.uri) is not None:
            return self._reason()  # waiting does not help
        if now_s - self._in_line_s <= _TELL_AFTER_S:
            return None
        answered_s = self.tracker.answered_s
        is_silent = (
            self._pass_began_s is not None
            and answered_s is not None  # to open a store for the first time may take long
            and now_s - max(answered_s, self._pass_began_s) > _TELL_AFTER_S
        )
        return self._reason() or ("it does not answer." if is_silent else None)

    def _reason(self) -> str | None:
        """Return a sentence on what MLflow lacks and why, None where nothing is known to lack."""
        error, behind = self._error, dict(self.tracker.rejected)
        if error is not None:
            return redacted(client.reason(error, self.tracker.uri))
        if behind:
            signature, first = next(iter(behind.items()))
            others = f" and {len(behind) - 1} more" if len(behind) > 1 else ""
            return f"it does not take trial {signature}{others}: {first.reason}"
        return None

    def _sync(self, *, last: bool = False) -> bool:
        """Bring MLflow up to date once; return whether it took everything."""
        self._pass_began_s = time.monotonic()
        try:
            if last and self._outcome is not None:
                trials = len(self.tracker.ledger.trials())
                self.tracker.finish(self._outcome, {"trials": trials})
            else:
                self.tracker.sync()
        except Exception as error:
            if self._error is None:
                _log.warning(redacted(f"MLflow is not reachable for now: {error!r}"))
            self._error = error
            return False
        finally:
            self._pass_began_s = None
        self._error = None
        if self.tracker.rejected:
            return False
        self._in_line_s = time.monotonic()
        return True

    def _await_first(self) -> None:
        """Wait until there is something to tell MLflow."""
        until_s = time.monotonic() + _FIRST_AFTER_S
        with contextlib.suppress(Exception):  # what is wrong with the ledger, the trials will tell
            while time.monotonic() < until_s and not self.tracker.ledger.latest_epochs():
                if self._stop.wait(0.2):
                    break
        self._in_line_s = time.monotonic()

    def _keep_mlflow(self) -> None:
        self._await_first()
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            is_up = self._sync() or self._error is None
            pause_s = 1.0 if is_up else min(max(1.0, 2 * pause_s), _LONGEST_PAUSE_S)
        for pause_s in (*_LAST_PAUSES_S, 0.0):
            begun_s = time.monotonic()
            self._has_all = self._sync(last=True)
            if self._has_all or time.monotonic() - begun_s > _TELL_AFTER_S:
                return  # nobody waits at the end for a server that does not answer
            time.sleep(pause_s)

    def _keep_disk(self) -> None:
        while True:
            is_last = self._stop.wait(1.0)
            try:
                up_to = self.tracker.copied_seq() if self.tracker.copied_seq else None
                if is_last:  # workers that were stopped may have written meanwhile
                    self._clean.clear()
                retention.collect(self.tracker.ledger, self.paths, self._clean, up_to)
            except Exception as error:
                _log.warning("Checkpoints could not be cleaned up: %r", error)
            if is_last:
                return
