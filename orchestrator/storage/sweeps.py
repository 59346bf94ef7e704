"""Finds sweeps by name, in a local storage or in one at an address."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import SweepNotFoundError, UsageError
from orchestrator.plan.options import SweepConfig
from orchestrator.redaction import redacted
from orchestrator.storage.paths import SweepPaths, sweep_names
from orchestrator.storage.store import Storage, StorageError, open_storage

LEDGER = "ledger.sqlite"


def storage_of(paths: SweepPaths) -> Storage | None:
    """Return a sweep's folder in its storage; None where that is a folder on a local disk.

    Raises:
        UsageError: the address is not one that can be used.
    """
    if paths.durable is None:
        return None
    try:
        return open_storage(paths.durable).child(paths.name)
    except (StorageError, OSError) as error:
        raise UsageError(redacted(str(error))) from error


def has_sweep(paths: SweepPaths) -> bool:
    """Return whether the sweep exists, here or in its storage."""
    storage = storage_of(paths)
    return paths.ledger.exists() or (storage is not None and storage.exists(LEDGER))


def sweeps_in(address: str) -> list[str]:
    """Return the sweeps that exist in a storage, sorted."""
    storage = open_storage(address)
    return [name for name in storage.folders() if storage.exists(f"{name}/{LEDGER}")]


def local_file(paths: SweepPaths, name: str) -> Path | None:
    """Return a file of the sweep's folder on this machine, from the storage if need be, or None."""
    file, storage = paths.root / name, storage_of(paths)
    if not file.is_file() and storage is not None:
        storage.get_file(name, file)
    return file if file.is_file() else None


def not_found(config: SweepConfig) -> SweepNotFoundError:
    """Return the error for a sweep that is not there; it lists those that are."""
    names = set(sweep_names(config.paths.storage))
    if config.paths.durable:
        names |= set(sweeps_in(config.paths.durable))
    way_out = "Leave out --resume to start it." if config.resume else "Name one of them."
    return SweepNotFoundError(
        f"There is no sweep named {config.name!r} in {redacted(str(config.storage))}. Existing: "
        f"{', '.join(sorted(names)) or 'none'}. {way_out}"
    )
