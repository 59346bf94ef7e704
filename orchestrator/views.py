"""The background thread that keeps MLflow and the disk in line with the ledger."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from orchestrator import retention
from orchestrator.paths import SweepPaths
from orchestrator.tracking import Tracker
from trainables.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console


_log = logging.getLogger(__name__)


class Views:
    """The background thread that brings MLflow and the disk in line with the ledger."""

    def __init__(self, tracker: Tracker, paths: SweepPaths) -> None:
        self.tracker, self.paths = tracker, paths
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="views", daemon=True)
        self._clean: set[str] = set()
        self._outcome: str | None = None
        self._has_all = False
        self._warned = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self, console: Console, outcome: str, limit_s: float) -> None:
        """Write the rest, for `limit_s` seconds at most: `--resume` writes what is missing."""
        self._outcome = outcome
        self._stop.set()
        self._thread.join(timeout=limit_s)
        if not self._has_all:
            console.print(
                f"MLflow at {redacted(self.tracker.uri)} did not take everything; the ledger has "
                "it. The same command with --resume writes the rest.",
                style="yellow",
            )

    def _sync(self) -> bool:
        """Bring both up to date once; return whether MLflow took everything."""
        try:
            retention.collect(self.tracker.ledger, self.paths, self._clean)
            self.tracker.sync()
        except Exception as error:
            if not self._warned:
                self._warned = True
                _log.warning(redacted(f"MLflow is not reachable for now: {error!r}"))
            return False
        return True

    def _loop(self) -> None:
        pause_s = 1.0
        while not self._stop.wait(pause_s):
            pause_s = 1.0 if self._sync() else min(2 * pause_s, 30.0)
        if self._sync() and self._outcome is not None:
            with contextlib.suppress(Exception):
                self.tracker.finish(self._outcome, {"trials": len(self.tracker.ledger.trials())})
                self._has_all = True
