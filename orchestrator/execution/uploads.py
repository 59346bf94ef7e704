"""Copies an attempt's checkpoints and log to the storage."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.execution.job import Job
from orchestrator.storage.paths import LEDGER, attempt_path
from orchestrator.storage.store import open_storage

log = logging.getLogger(__name__)

LOG_EVERY_S = 30.0  # shortest time between two uploads of a log; the last is at its end


class Uploads:
    """Context manager that copies one attempt's checkpoints and log to the sweep's storage.

    The local files are then copies. Where no driver deletes them, the attempt does so at its end.
    """

    def __init__(self, job: Job) -> None:
        assert job.storage is not None
        self.job, self.root, self.storage = job, Path(job.sweep_dir), open_storage(job.storage)
        self._log_s = time.monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Store the log, however the attempt ended."""
        self._log()
        is_on_driver = (self.root / LEDGER).exists()
        if not is_on_driver and (kind is None or not issubclass(kind, Exception)):
            folder = self.root / attempt_path(self.job.signature, self.job.attempt)
            shutil.rmtree(folder, ignore_errors=True)

    def checkpoint(self, name: str, alive: Callable[[], None] | None) -> None:
        """Store a checkpoint; once this returns, any machine can resume from it.

        `name` is its folder, relative to the sweep's. `alive` is called now and then during the
        upload, so that a slow one is not ended as hanging.

        Raises:
            StorageError: the checkpoint could not be stored.
        """
        from trainables.training.checkpoint import MANIFEST

        self.storage.put_folder(self.root / name, name, last=MANIFEST, alive=alive)
        if time.monotonic() - self._log_s > LOG_EVERY_S:
            self._log()

    def _log(self) -> None:
        self._log_s = time.monotonic()
        path = self.root / self.job.log
        try:
            if path.exists():
                self.storage.put(self.job.log, path, keep_trying_s=0)
        except OSError as error:  # a missing log is no reason to end a trial
            log.warning("The log could not be stored: %s", error)
