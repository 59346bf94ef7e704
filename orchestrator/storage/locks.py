"""Locks on files of this machine: one driver per sweep, one download per file."""

from __future__ import annotations

import fcntl
import functools
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from orchestrator import command
from orchestrator.errors import UsageError
from orchestrator.storage.paths import SweepPaths
from trainables import files


def announced_lock(path: Path, busy: str) -> AbstractContextManager[IO[str]]:
    """Return an exclusive lock on a file; `busy` is printed if another process holds it."""
    announce = functools.cache(lambda file: command.warn(busy))  # once, not before every pause
    return files.exclusive_lock(path, announce)


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
        with suppress(OSError):  # a full disk; the text is for the message of another driver
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def driver_of(paths: SweepPaths) -> str | None:
    """Return the process and host that hold the sweep's lock; None if it is free."""
    with suppress(FileNotFoundError), paths.lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "another process"
    return None
