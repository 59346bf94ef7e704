"""Finds sweeps by name, and their files, in a local storage or in one at a URL."""

from __future__ import annotations

import difflib
import os
import shlex
from pathlib import Path

from orchestrator.errors import SweepNotFoundError, UsageError
from orchestrator.redaction import redacted
from orchestrator.storage.paths import LEDGER, SweepPaths, is_sweep_name, sweep_paths
from orchestrator.storage.store import Storage, StorageError, is_uri, open_storage


def storage_of(paths: SweepPaths) -> Storage | None:
    """Return a sweep's folder in its storage; None if that is a folder on a local disk.

    Raises:
        UsageError: the address cannot be used.
    """
    if paths.remote is None:
        return None
    try:
        return open_storage(paths.remote).child(paths.name)
    except (StorageError, OSError) as error:
        raise UsageError(redacted(str(error))) from error


def has_sweep(paths: SweepPaths) -> bool:
    """Return whether the sweep exists, on this machine or in its storage."""
    storage = storage_of(paths)
    return paths.ledger.exists() or (storage is not None and storage.exists(LEDGER))


def sweep_names(storage: Path | str) -> list[str]:
    """Return the names of the sweeps in a storage, which is a path or an address, sorted.

    Raises:
        StorageError: the storage cannot be reached.
    """
    anywhere = sweep_paths(storage, "any")
    names = {path.parent.name for path in anywhere.local_root.glob(f"*/{LEDGER}")}
    if anywhere.remote:
        remote = open_storage(anywhere.remote)
        names |= {name for name in remote.folders() if remote.exists(f"{name}/{LEDGER}")}
    return sorted(names)


def find_sweep(
    storage: Path | str, *names: str, way_out: str = "Name another place with --storage."
) -> SweepPaths:
    """Return the paths of the first of these sweeps that exists in a storage.

    Names that no sweep can have are skipped. `way_out` is the last sentence of the error.

    Raises:
        SweepNotFoundError: none exists; the error lists those that do.
        StorageError: the storage cannot be reached.
    """
    for name in filter(is_sweep_name, names):
        paths = sweep_paths(storage, name)
        if has_sweep(paths):
            return paths
    known = sweep_names(storage)
    near = difflib.get_close_matches(names[0], known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    for folder in filter(_is_sweep_folder, names):
        hint = ""
        way_out = f"That path is a sweep: give its name, {_as_words(Path(folder))}."
    raise SweepNotFoundError(
        f"There is no sweep named {names[0]!r} in {_place(storage)}. Existing: "
        f"{', '.join(known) or 'none'}.{hint} {way_out}"
    )


def _is_sweep_folder(name: str) -> bool:
    return os.path.isfile(os.path.join(name, LEDGER))  # False for what cannot be a path


def _as_words(folder: Path) -> str:
    """Return the arguments that name the sweep in a folder."""
    folder = folder.absolute()
    return f"`{shlex.join([folder.name, '--storage', str(folder.parent)])}`"


def _place(storage: Path | str) -> str:
    """Return a storage as it is shown: an address without secrets, or an absolute folder."""
    address = redacted(str(storage))
    return address if is_uri(str(storage)) else str(Path(address).absolute())


def local_file(paths: SweepPaths, name: str) -> Path | None:
    """Return a file of the sweep's folder, fetched from the storage if missing here, or None."""
    file, storage = paths.root / name, storage_of(paths)
    if not file.is_file() and storage is not None:
        storage.get_file(name, file)
    return file if file.is_file() else None


def local_checkpoint(paths: SweepPaths, name: str) -> Path | None:
    """Return a checkpoint as `fetch_checkpoint` does, from the sweep's folder and storage."""
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
