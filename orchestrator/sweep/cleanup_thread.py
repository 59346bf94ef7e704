"""Deletes checkpoints that nothing needs any more while the sweep runs.

It does not wait for MLflow: the disk must not fill up while MLflow is down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from orchestrator.ledger import retention
from orchestrator.ledger.ledger import Ledger
from orchestrator.storage.paths import SweepPaths
from orchestrator.threads import StepThread

_log = logging.getLogger(__name__)

_PAUSE_S = 1.0


class CleanupThread:
    """The disk clean-up. Start its `thread` and call `stop` at the end, or call `step` by hand.

    `copied_seq` returns the number of the last change that the ledger's copy holds; it is None
    where there is no copy.
    """

    def __init__(
        self, ledger: Ledger, paths: SweepPaths, copied_seq: Callable[[], int] | None
    ) -> None:
        self._ledger, self._paths, self._copied_seq = ledger, paths, copied_seq
        self._clean: set[str] = set()  # signatures of the trials that are cleaned up already
        self._is_last = False
        self.thread = StepThread("cleanup", self.step)

    def stop(self) -> None:
        """Make the next step the last one, and start it now."""
        self._is_last = True
        self.thread.wake()

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
