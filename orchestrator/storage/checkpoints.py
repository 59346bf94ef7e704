"""Fetches a trial's checkpoints from the sweep's storage to this machine."""

from __future__ import annotations

from pathlib import Path

from orchestrator.storage.paths import SweepPaths
from orchestrator.storage.store import Storage
from orchestrator.storage.sweeps import storage_of


def local_checkpoint(paths: SweepPaths, name: str) -> Path | None:
    """Return `fetch_checkpoint` of a sweep's folder and storage."""
    return fetch_checkpoint(paths.root, storage_of(paths), name)


def fetch_checkpoint(sweep_dir: Path, storage: Storage | None, name: str) -> Path | None:
    """Return the folder of a whole checkpoint on this machine, or None if there is none.

    Its name is relative to the sweep's folder. One that is not on this machine is fetched from the
    sweep's folder in the storage.

    Raises:
        StorageError: the storage cannot be reached.
    """
    from trainables.training import checkpoint

    folder = sweep_dir / name
    whole = checkpoint.newest_valid([folder])
    if whole is None and storage is not None:
        storage.get_folder(name, folder, mark=checkpoint.MANIFEST)
        whole = checkpoint.newest_valid([folder])
    return whole
