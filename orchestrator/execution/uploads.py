"""Copies an attempt's checkpoints and log to the storage."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.execution.job import Job

log = logging.getLogger(__name__)

LOG_EVERY_S = 30.0  # an attempt's log goes to the storage so often, and at its end


class Uploads:
    """Brings one attempt's checkpoints and log to the sweep's storage; a context manager.

    Its local files are then copies: where the driver does not clean them up, the attempt does.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        from orchestrator.storage.store import open_storage

        assert job.storage is not None
        self.job, self.folder, self.storage = job, folder, open_storage(job.storage)
        self._log_s = time.monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Store the log, whatever the end was."""
        self._log()
        is_drivers = (Path(self.job.sweep_dir) / "ledger.sqlite").exists()
        if not is_drivers and (kind is None or not issubclass(kind, Exception)):
            shutil.rmtree(self.folder, ignore_errors=True)

    def checkpoint(self, name: str, alive: Callable[[], None] | None) -> None:
        """Store a checkpoint; when this returns, any machine can go on from it.

        Args:
            name: its folder, relative to the sweep's.
            alive: called now and then meanwhile; a slow upload is no hanging trial.

        Raises:
            StorageError: it could not be stored.
        """
        from trainables.training.checkpoint import MANIFEST

        self.storage.put_folder(Path(self.job.sweep_dir) / name, name, last=MANIFEST, alive=alive)
        if time.monotonic() - self._log_s > LOG_EVERY_S:
            self._log()

    def _log(self) -> None:
        self._log_s = time.monotonic()
        path = Path(self.job.sweep_dir) / self.job.log
        try:
            if path.exists():
                self.storage.put(self.job.log, path, keep_trying_s=0)
        except OSError as error:  # no trial ends for its log
            log.warning("The log could not be stored: %s", error)
