"""Opens a copy of a sweep's ledger to be read: whoever runs the sweep goes on undisturbed."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator import durability, process
from orchestrator.errors import UsageError
from orchestrator.ledger import Ledger, LedgerError
from orchestrator.paths import SweepPaths
from orchestrator.verify_facts import facts_of
from trainables.redaction import redacted
from trainables.storage import StorageError


@contextlib.contextmanager
def ledger_copy(paths: SweepPaths) -> Iterator[Ledger]:
    """Yield a copy that goes away with the block.

    A driver on this machine has the latest; else the storage at an address has, which other
    machines write to as well; else this machine's own is it.

    Raises:
        UsageError: it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        driver = process.driver_of(paths) if paths.ledger.exists() else None
        try:
            ledger = _stored(paths, stack) if paths.durable and driver is None else None
            if ledger is None:
                ledger = stack.enter_context(facts_of(paths, driver)).ledger
        except (LedgerError, StorageError) as error:
            raise UsageError(redacted(str(error))) from error
        yield ledger


def _stored(paths: SweepPaths, stack: contextlib.ExitStack) -> Ledger | None:
    """Return the storage's copy; None where it cannot be had and this machine has a ledger."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sweep-read-"))
    try:
        ledger = durability.fetched(paths, Path(folder) / paths.ledger.name)
    except (LedgerError, StorageError, UsageError) as error:
        if not paths.ledger.exists():
            raise
        print(redacted(f"{error} So this is what this machine has of the sweep."), file=sys.stderr)
        return None
    return stack.enter_context(contextlib.closing(ledger))
