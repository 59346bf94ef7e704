"""Opens a copy of a sweep's ledger for reading, without disturbing a running driver."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.ledger import backup
from orchestrator.ledger.database import LedgerError, check_access
from orchestrator.ledger.ledger import Ledger, check_belongs, open_ledger
from orchestrator.redaction import redacted
from orchestrator.storage import locks
from orchestrator.storage.paths import SweepPaths
from orchestrator.storage.store import StorageError


@contextlib.contextmanager
def ledger_copy(paths: SweepPaths) -> Iterator[Ledger]:
    """Yield the newest copy, as `newest_copy` does, but raise a `UsageError` for any problem."""
    with contextlib.ExitStack() as stack:
        try:
            ledger = stack.enter_context(newest_copy(paths))
        except (LedgerError, StorageError) as error:
            raise UsageError(redacted(str(error))) from error
        yield ledger


@contextlib.contextmanager
def newest_copy(paths: SweepPaths) -> Iterator[Ledger]:
    """Yield the newest copy of a sweep's ledger, which is deleted after the block.

    The ledger of a driver on this machine is the newest. Otherwise it is the copy in a remote
    storage, which other machines write as well, and then the ledger that a driver left here.

    Raises:
        LedgerError: it cannot be read, or is damaged.
        StorageError: the storage cannot be reached, and this machine has no ledger.
        UsageError: the copy in the storage is damaged, and this machine has no ledger.
    """
    driver = locks.driver_of(paths) if paths.ledger.exists() else None
    with contextlib.ExitStack() as stack:
        ledger = None
        if paths.remote and driver is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sweep-read-"))
            try:
                ledger = backup.read_backup(paths, Path(folder) / paths.ledger.name)
                stack.callback(ledger.close)
            except (LedgerError, StorageError, UsageError) as error:
                if not paths.ledger.exists():
                    raise
                print(redacted(f"{error} This machine's ledger is used instead."), file=sys.stderr)
        yield ledger or stack.enter_context(local_copy(paths, driver))


@contextlib.contextmanager
def local_copy(paths: SweepPaths, driver: str | None) -> Iterator[Ledger]:
    """Yield a copy of this machine's ledger of a sweep, which is deleted after the block.

    `driver` is the process that writes it now, None if there is none.

    Raises:
        LedgerError: it cannot be read, or SQLite's check of the file finds damage.
    """
    with tempfile.TemporaryDirectory(prefix="sweep-read-") as folder:
        copy = Path(folder) / paths.ledger.name
        check_access(paths.ledger)
        if driver is None:
            # Copied with its journal: opening the original would make SQLite write to it.
            for end in ("", "-wal"):
                source = paths.ledger.with_name(paths.ledger.name + end)
                if source.exists():
                    shutil.copyfile(source, copy.with_name(copy.name + end))
        else:
            with contextlib.closing(open_ledger(paths.ledger, read_only=True)) as live:
                live.database.copy_to(copy)
        try:
            ledger = open_ledger(copy)
        except LedgerError as error:
            raise LedgerError(str(error).replace(str(copy), str(paths.ledger))) from error
        with contextlib.closing(ledger):
            damage = ledger.database.integrity_problems()
            if damage:
                raise LedgerError(f"{paths.ledger} is damaged: {'; '.join(damage[:3])}.")
            check_belongs(ledger, paths)
            yield ledger
