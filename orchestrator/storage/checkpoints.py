"""Fetches a trial's checkpoints from the sweep's storage to this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.storage.paths import SweepPaths
from orchestrator.storage.sweeps import storage_of

if TYPE_CHECKING:
    from orchestrator.execution.job import Job


def local_checkpoint(paths: SweepPaths, name: str) -> Path | None:
    """Return a whole checkpoint's folder on this machine, from the storage if need be, or None.

    Args:
        paths: the sweep's.
        name: of the checkpoint, relative to the sweep's folder.

    Raises:
        StorageError: the storage cannot be reached, so nobody knows.
    """
    from trainables.training import checkpoint

    folder = paths.root / name
    whole = checkpoint.newest_valid([folder])
    storage = storage_of(paths)
    if whole is None and storage is not None:
        storage.get_folder(name, folder, mark=checkpoint.MANIFEST)
        whole = checkpoint.newest_valid([folder])
    return whole


def _local(job: Job, name: str) -> Path:
    """Return a checkpoint's folder on this machine, fetched from the storage if it lacks it."""
    folder = Path(job.sweep_dir) / name
    if job.storage:
        from orchestrator.storage.store import open_storage
        from trainables.training import checkpoint

        if checkpoint.newest_valid([folder]) is None:
            open_storage(job.storage).get_folder(name, folder, mark=checkpoint.MANIFEST)
    return folder
