"""File locks: one driver per sweep and one download per file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.storage.paths import SweepPaths


@contextmanager
def exclusive_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold an exclusive lock on a file, after saying `busy` if another process holds it.

    The system drops the lock when its holder ends, however it ends; the empty file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(busy, file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def driver_lock(paths: SweepPaths) -> Iterator[None]:
    """Hold the sweep's lock; the kernel lets go of it when this process ends, however it ends."""
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        lock = paths.lock.open("a+")
    except OSError as error:
        raise UsageError(
            f"The storage {paths.storage} cannot be written: {error}. Choose another one with "
            "--storage."
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UsageError(
                f"The sweep {paths.name!r} is already being run by {file.read().strip()}. Wait for "
                "it, or stop that process."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def driver_of(paths: SweepPaths) -> str | None:
    """Return which process on which host holds the sweep's lock; None when nobody does."""
    try:
        with paths.lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except FileNotFoundError:
        pass
    return None
