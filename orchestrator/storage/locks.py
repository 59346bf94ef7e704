"""Locks on files of this machine: one driver per sweep, one download per file."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from orchestrator.errors import UsageError
from orchestrator.storage.paths import SweepPaths
from trainables import files


@contextmanager
def announced_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold an exclusive lock on a file, after printing `busy` if another process holds it."""
    texts = iter([busy])  # printed once, not before every pause

    def announce(file: IO[str]) -> None:
        for text in texts:
            print(text, file=sys.stderr, flush=True)

    with files.exclusive_lock(path, announce):
        yield


@contextmanager
def driver_lock(paths: SweepPaths) -> Iterator[None]:
    """Hold the sweep's lock, which names this process to any other driver.

    Raises:
        UsageError: another driver holds it, or the storage cannot be written.
    """

    def refuse(file: IO[str]) -> None:
        file.seek(0)
        raise UsageError(
            f"The sweep {paths.name!r} is already being run by {file.read().strip()}. Wait for "
            "it, or stop that process."
        )

    with ExitStack() as stack:
        try:
            file = stack.enter_context(files.exclusive_lock(paths.lock, refuse))
        except OSError as error:
            raise UsageError(
                f"The storage {paths.local_root} cannot be written: {error}. Choose another one "
                "with --storage."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def driver_of(paths: SweepPaths) -> str | None:
    """Return the process and host that hold the sweep's lock; None if it is free."""
    try:
        with paths.lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except FileNotFoundError:
        pass
    return None
