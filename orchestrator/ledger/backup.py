"""What another machine needs to go on: the ledger's durable copy in the sweep's storage.

A sweep whose storage is a plain folder on a local disk has its ledger there and needs none of this.
Otherwise the ledger that is written lies in this machine's cache, and a thread copies it to the
storage soon after every change. Only what the copy holds counts as durable: MLflow is told no more,
and no checkpoint is deleted that the copy still points to.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError
from orchestrator.ledger.header import read_header
from orchestrator.redaction import redacted
from orchestrator.storage import lease as leases
from orchestrator.storage.paths import SweepPaths
from orchestrator.storage.store import Storage, StorageError
from orchestrator.storage.sweeps import LEDGER, storage_of

if TYPE_CHECKING:
    from orchestrator.ledger.ledger import Ledger

EVERY_S = 1.0  # seconds between two copies, at least
AT_LATEST_S = 10.0  # after a change, however long a copy takes, unless the storage is away
_SHARE = 10  # a copy that takes long is made more seldom: a tenth of the time

# SQLite ignores what follows its last page.
_TRAILER = re.compile(rb"\nsha256:([0-9a-f]{64})\n\Z")
_TRAILER_BYTES = 73


def read_backup(paths: SweepPaths, copy: Path) -> Ledger:
    """Return the copy of a sweep's ledger from its storage, open, to be read.

    Args:
        paths: of a sweep whose storage is an address.
        copy: where the file is put.

    Raises:
        UsageError: it is damaged, or there is none.
    """
    storage = storage_of(paths)
    assert storage is not None
    if not storage.get_file(LEDGER, copy):
        raise UsageError(f"There is no ledger at {storage.shown}.")
    return _checked(copy, storage, paths)


@contextlib.contextmanager
def open_backup(paths: SweepPaths, say: Callable[[str], None]) -> Iterator[LedgerBackup | None]:
    """Hold the sweep's lease in its storage; yields None where there is nothing to copy to.

    Raises:
        UsageError: another driver holds it, or the storage cannot be used.
    """
    storage = storage_of(paths)
    if storage is None:
        yield None
        return
    try:
        lease = leases.take(storage, say)
    except StorageError as error:
        raise UsageError(str(error)) from error
    durable = LedgerBackup(paths, storage, lease, say)
    try:
        yield durable
    finally:
        durable.close()


class LedgerBackup:
    """Keeps a sweep's storage in line with its ledger, from a thread of its own."""

    def __init__(
        self, paths: SweepPaths, storage: Storage, lease: leases.Lease, say: Callable[[str], None]
    ) -> None:
        self.paths, self.storage, self.lease, self.say = paths, storage, lease, say
        self._ledger: Ledger | None = None
        self._up_to = 0
        self._copied = (-1, -1)  # the ledger's position at the last copy
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="durability", daemon=True)
        self._has_warned = False
        self._news: collections.deque[str] = collections.deque()

    @property
    def up_to(self) -> int:
        """The number of the latest change that is in the copy for certain."""
        return self._up_to

    @property
    def lost(self) -> str | None:
        """Why this driver must stop, once another one has taken the sweep over."""
        return self.lease.lost

    def fetch(self) -> None:
        """Bring this machine's ledger to where the copy is, if the copy knows more.

        Every driver adds itself to the ledger's list of drivers, and copies that before it does
        anything else. So one of two ledgers whose lists differ is what the other began from, or
        the work of a driver that was replaced; with equal lists the longer one has all.

        Raises:
            UsageError: the copy is damaged, or the storage cannot be used.
        """
        from orchestrator.ledger.ledger import LedgerError, open_ledger

        paths = self.paths
        with tempfile.TemporaryDirectory(dir=paths.root, prefix=".fetched-") as folder:
            copy = Path(folder) / LEDGER
            try:
                if not self.storage.get_file(LEDGER, copy):
                    return
                theirs = _identity(_checked(copy, self.storage, paths))
            except StorageError as error:
                raise UsageError(str(error)) from error
            if paths.ledger.exists():
                with contextlib.suppress(LedgerError):  # a damaged one is as good as none
                    if _knows_all(_identity(open_ledger(paths.ledger)), theirs):
                        return
                self._put_aside()
            # Of another history; what counts is in the storage.
            shutil.rmtree(paths.root / "trials", ignore_errors=True)
            copy.replace(paths.ledger)
        self.say(f"Going on from the copy of the ledger in {self.storage.shown}.")

    def begin(self, ledger: Ledger) -> None:
        """Make the first copy, and from now on one after every change.

        Raises:
            UsageError: it cannot be written.
        """
        ledger.put("drivers", [*read_header(ledger).drivers, self.lease.token])
        self._ledger = ledger
        try:
            self._copy(keep_trying_s=None)
        except (StorageError, leases.LeaseLostError) as error:
            raise UsageError(str(error)) from error
        self._thread.start()

    def tell(self, say: Callable[[str], None]) -> None:
        """Say once that the copy is behind, and once that it is up to date again."""
        while self._news:
            say(self._news.popleft())

    def flush(self, limit_s: Callable[[], float]) -> bool:
        """Wait until the copy holds everything, for so long at most; return whether it does."""
        assert self._ledger is not None
        began_s = time.monotonic()
        while not self._has_all():
            if time.monotonic() - began_s > limit_s() or self.lost or not self._thread.is_alive():
                return False
            self._wake.set()
            time.sleep(0.2)
        return True

    def end(self) -> None:
        """End the copying, before the ledger is closed."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive() and not self._has_warned:  # nobody waits for one that is away
            self._thread.join(5.0)

    def close(self) -> None:
        """End the copying and give the lease back."""
        self.end()
        if self._has_warned:
            self.lease.stop()  # it becomes stale
        else:
            self.lease.release()

    def forget(self) -> None:
        """Remove the copy of a sweep that never began."""
        self.end()
        with contextlib.suppress(StorageError):
            self.storage.delete(LEDGER)

    def _has_all(self) -> bool:
        return self._ledger is not None and self._copied == self._ledger.position()

    def _loop(self) -> None:
        pause_s = EVERY_S
        while not self._stop.is_set():
            self._wake.wait(pause_s)
            self._wake.clear()
            if self._stop.is_set():
                return
            began_s = time.monotonic()
            try:
                if not self._has_all():
                    self._copy(keep_trying_s=0)
                pause_s = min(max(EVERY_S, _SHARE * (time.monotonic() - began_s)), AT_LATEST_S)
                if self._has_warned:
                    self._has_warned = False
                    self._news.append("The copy of the ledger is up to date again.")
            except leases.LeaseLostError:
                return
            except Exception as error:  # a full disk here is not pyarrow's error
                if self._stop.is_set():
                    return
                pause_s = min(2 * pause_s, AT_LATEST_S)
                if not self._has_warned:
                    self._has_warned = True
                    self._news.append(
                        "The copy of the ledger in the storage cannot be brought up to date for "
                        f"now; the sweep goes on, and so do the tries. {redacted(str(error))}"
                    )

    def _copy(self, *, keep_trying_s: float | None) -> None:
        assert self._ledger is not None
        # Read first: the copy may hold a little more than it is taken to.
        position = self._ledger.position()
        local = self.paths.root / ".ledger.copy"
        try:
            self._ledger.copy_to(local)
            content = local.read_bytes()
        finally:
            local.unlink(missing_ok=True)
        self.lease.check()  # it must not replace the copy of a driver that took over
        digest = hashlib.sha256(content).hexdigest()
        self.storage.put(
            LEDGER, content + f"\nsha256:{digest}\n".encode(), keep_trying_s=keep_trying_s
        )
        self._copied, self._up_to = position, position[0]

    def _put_aside(self) -> None:
        ledger = self.paths.ledger
        for end in ("", "-wal", "-shm"):
            file = ledger.with_name(ledger.name + end)
            if file.exists():
                file.replace(file.with_name(f"{LEDGER}.before{end}"))
        self.say(
            f"This machine's ledger was behind; it is kept as {ledger.name}.before in "
            f"{self.paths.root}."
        )


def _checked(copy: Path, storage: Storage, paths: SweepPaths) -> Ledger:
    """Return a fetched copy, open, without its trailer.

    Raises:
        UsageError: it is not what was written.
    """
    from orchestrator.ledger.ledger import LedgerError, open_ledger

    content = copy.read_bytes()
    trailer = _TRAILER.search(content, max(0, len(content) - _TRAILER_BYTES))
    content = content[:-_TRAILER_BYTES]
    problem = "its SHA-256 is not the one at its end"
    if trailer and hashlib.sha256(content).hexdigest().encode() == trailer[1]:
        copy.write_bytes(content)
        try:
            return open_ledger(copy)
        except LedgerError as error:
            problem = str(error)
    way_out = "Put an earlier version of it in place, or start the sweep under another --name."
    if paths.ledger.exists():
        way_out = f"Delete it to go on with this machine's ledger, {paths.ledger}."
    raise UsageError(
        f"The copy of the ledger at {storage.shown}/{LEDGER} is damaged: {problem}. {way_out}"
    )


def _identity(ledger: Ledger) -> tuple[str, list[str], int]:
    """Return a ledger's sweep, its drivers and how far it is, and close it."""
    with contextlib.closing(ledger):
        header = read_header(ledger)
        return header.sweep_id, list(header.drivers), ledger.seq


def _knows_all(ours: tuple[str, list[str], int], theirs: tuple[str, list[str], int]) -> bool:
    """Return whether a ledger holds all that a copy of it, or of another, holds."""
    if ours[:2] == theirs[:2]:
        return ours[2] >= theirs[2]
    begun_from_theirs = len(ours[1]) > len(theirs[1]) and ours[1][: len(theirs[1])] == theirs[1]
    return ours[0] == theirs[0] and begun_from_theirs
