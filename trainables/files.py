"""Writes files and folders completely or not at all; SHA-256 digests and file locks.

A file or folder is written under a temporary name beside its place, flushed to disk, and renamed.
No reader ever finds a part of it, and no crash leaves one under its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_BLOCK_BYTES = 2**18
_LOCK_POLL_S = 0.2  # between two tries for a lock that another process holds


@contextmanager
def temporary(path: Path, ending: str | None = None) -> Iterator[Path]:
    """Yield an unused name beside a path; a file or folder still there afterwards is deleted.

    The parent folder of the path is created. `ending` is that of the temporary name, for a caller
    that finds leftovers by it; None: a random one.
    """
    new = path.with_name(f".{path.name}.{ending or f'{uuid.uuid4().hex[:8]}.tmp'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield new
    finally:
        if new.is_dir():
            shutil.rmtree(new, ignore_errors=True)
        else:
            new.unlink(missing_ok=True)


def put_in_place(new: Path, path: Path, *, durable: bool = True) -> None:
    """Rename a file or folder to its place, replacing what was there.

    A folder cannot be replaced in one step: until the new one is there, the old one has the name
    that `replaced` returns. `new` must be in the folder of `path`. It is flushed to disk before and
    after, unless `durable` is False, for what can be made again.
    """
    if durable:
        for each in sorted(new.rglob("*")):
            fsync(each)
        fsync(new)
    if not new.is_dir():
        new.replace(path)
    else:
        old = replaced(path)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # another process has just replaced it
                path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
    if durable:
        fsync(path.parent)
    shutil.rmtree(replaced(path), ignore_errors=True)


def replaced(folder: Path) -> Path:
    """Return the name of a folder's old version while `put_in_place` replaces it."""
    return folder.with_name(f".{folder.name}.replaced")


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path, start: int = 0, size: int | None = None) -> str:
    """Return the SHA-256 of a file, or of `size` bytes of it from `start`, in hex."""
    digest, left = hashlib.sha256(), sys.maxsize if size is None else size
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while count := file.readinto(buffer[: min(left, _BLOCK_BYTES)]):
            digest.update(buffer[:count])
            left -= count
    return digest.hexdigest()


@contextmanager
def exclusive_lock(path: Path, waiting: Callable[[IO[str]], None]) -> Iterator[IO[str]]:
    """Hold an exclusive lock on a file, which is yielded open for reading and writing.

    The kernel releases the lock when its holder ends, however it ends; the file stays. It and its
    parent folder are created. `waiting` is called with the open file before every pause while
    another process holds the lock; it may raise to give up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting(file)
            time.sleep(_LOCK_POLL_S)
        yield file
