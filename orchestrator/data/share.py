"""Prepared datasets at a URL: each host fetches a dataset once, checks it and shares its copy.

All trials of a host map the files of the same copy.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from orchestrator.command import warn
from orchestrator.redaction import redacted
from orchestrator.storage.paths import DATASET_MANIFEST as MANIFEST
from orchestrator.storage.store import open_storage
from trainables import files
from trainables.data.dataset import DatasetError, Manifest, load_manifest


def fetch(address: str, folder: Path, alive: Callable[[], None] | None = None) -> Manifest | None:
    """Return the manifest of a dataset, fetched to this host; None if the address has none.

    A copy that is the dataset at the address is kept; one of another dataset is replaced. Processes
    of one host wait for each other, so that one of them fetches.

    Args:
        address: of the folder of prepared datasets.
        folder: the copy; its name is the dataset's.
        alive: called every few seconds, also while another process fetches.

    Raises:
        DatasetError: a fetched file does not match its manifest.
        StorageError: the address cannot be read, and there is no copy here.
    """
    storage = open_storage(address)
    with _locked(folder, alive):
        there = storage.get(f"{folder.name}/{MANIFEST}")
        if there is None:
            return None
        if not _is_copy_of(folder, there):
            for left in folder.parent.glob(f".*{folder.name}.fetching*"):  # of one that was killed
                shutil.rmtree(left, ignore_errors=True)
            with files.temporary(folder, "fetching") as fetched:
                if not storage.get_folder(folder.name, fetched, mark=MANIFEST, alive=alive):
                    return None  # it was deleted meanwhile
                _check(fetched, storage.shown)
                files.put_in_place(fetched, folder, durable=False)
        return load_manifest(folder)


def ensure(
    address: str, folder: Path, fingerprint: str, alive: Callable[[], None] | None = None
) -> None:
    """Fetch the dataset of a trial to this host, unless it has a copy with this fingerprint.

    Raises:
        DatasetError: the address has no such dataset, or it is damaged.
        StorageError: the address cannot be read.
    """
    with _locked(folder, alive):
        if _fingerprint(folder) == fingerprint:
            return
    if fetch(address, folder, alive) is None:
        raise DatasetError(
            f"{open_storage(address).shown} holds no prepared dataset {folder.name!r}. Put it "
            f"there with `python -m orchestrator.data prepare {folder.name} --data-dir ...`."
        )


def publish(folder: Path, address: str) -> None:
    """Copy a prepared dataset to an address, from which each host of a cluster fetches it once.

    The manifest is copied last. The same dataset at the address is left as it is.

    Raises:
        DatasetError: the address has another dataset of that name.
        StorageError: the address cannot be written.
    """
    warn(f"Copying {folder.name} to {redacted(address)}.")
    storage = open_storage(address)
    there = storage.get(f"{folder.name}/{MANIFEST}")
    if there is None:
        storage.put_folder(folder, folder.name, last=MANIFEST)
    elif not _is_copy_of(folder, there):
        raise DatasetError(
            f"{storage.shown} holds another dataset {folder.name!r} already. Delete it there to "
            "replace it, or give the new one its own name with `--as NAME`."
        )


def _is_copy_of(folder: Path, manifest: bytes) -> bool:
    """Return whether a folder holds the dataset of a manifest, by their fingerprints."""
    try:
        return bool(_fingerprint(folder) == json.loads(manifest)["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"The manifest of the dataset {folder.name!r} at its address is damaged ({error!r}). "
            "Delete it there and prepare it again."
        ) from error


def _fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of a copy; None if there is no readable copy."""
    try:
        return load_manifest(folder).fingerprint
    except DatasetError:
        return None


def _check(folder: Path, shown: str) -> None:
    """Compare the files of a fetched dataset with its manifest."""
    for entry in json.loads((folder / MANIFEST).read_bytes())["splits"].values():
        digest = files.sha256(folder / Path(entry["file"]).name)
        if digest != entry["sha256"]:
            raise DatasetError(
                f"{entry['file']} of the dataset at {shown} does not match its manifest: its "
                f"SHA-256 is {digest}, not {entry['sha256']}. Delete it there and prepare it again."
            )


def _locked(folder: Path, alive: Callable[[], None] | None) -> AbstractContextManager[IO[str]]:
    """Lock a dataset's copy against other processes of this host."""
    lock = folder.parent / f".{folder.name}.fetch"
    return files.exclusive_lock(lock, lambda file: alive() if alive else None)
