"""Deletes checkpoints that nothing needs any more while the sweep runs.

It does not wait for MLflow: the disk must not fill up while MLflow is down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from orchestrator.ledger import retention
from orchestrator.ledger.ledger import Ledger
from orchestrator.storage.paths import SweepPaths
from orchestrator.sweep.signals import EndLimit
from orchestrator.threads import StepThread

_log = logging.getLogger(__name__)

_PAUSE_S = 1.0


class CleanupThread:
    """The disk clean-up. Call `start`, then `stop` and `join`; or call `step` by hand."""

    def __init__(
        self, ledger: Ledger, paths: SweepPaths, copied_seq: Callable[[], int] | None
    ) -> None:
        """Prepare the clean-up.

        `copied_seq` returns the number of the last change that the ledger's copy holds; it is None
        where there is no copy.
        """
        self._ledger, self._paths, self._copied_seq = ledger, paths, copied_seq
        self._clean: set[str] = set()  # signatures of the trials that are cleaned up already
        self._is_last = False
        self._thread = StepThread("cleanup", self.step)

    def start(self) -> None:
        """Start cleaning up in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Make the next step the last one, and start it now."""
        self._is_last = True
        self._thread.wake()

    def join(self, limit: EndLimit) -> None:
        """Wait for the last step, up to the limit."""
        limit.wait_for(self._thread)

    def step(self) -> float | None:
        """Clean up once; return the seconds until the next time, None after the last."""
        is_last = self._is_last
        if is_last:  # workers that were stopped may have written since a trial was cleaned up
            self._clean.clear()
        try:
            copied_seq = self._copied_seq() if self._copied_seq else None
            retention.collect(self._ledger, self._paths, self._clean, copied_seq)
        except Exception as error:
            _log.warning("Checkpoints could not be cleaned up: %r", error)
        return None if is_last else _PAUSE_S
