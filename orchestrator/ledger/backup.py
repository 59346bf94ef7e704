"""Copies the ledger to the sweep's storage, from which another machine can resume.

A sweep whose storage is a folder on a local disk has its ledger there and needs no copy.
Otherwise the driver writes the ledger in this machine's cache, and a thread copies it to the
storage soon after every change. Only what the copy holds counts as safe: MLflow gets nothing else,
and no checkpoint that the copy refers to is deleted.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.clock import Clock
from orchestrator.errors import UsageError
from orchestrator.ledger.database import LedgerError
from orchestrator.ledger.ledger import Ledger, check_belongs, open_ledger
from orchestrator.redaction import redacted
from orchestrator.storage import lease as leases
from orchestrator.storage.paths import LEDGER, SweepPaths
from orchestrator.storage.store import Storage, StorageError
from orchestrator.storage.sweeps import storage_of
from orchestrator.threads import StepThread

EVERY_S = 1.0  # shortest pause between two copies
AT_LATEST_S = 10.0  # longest pause, also while the storage cannot be reached
_PAUSE_PER_COPY = 10  # the pause is this many times as long as the copy took


def read_backup(paths: SweepPaths, copy: Path) -> Ledger:
    """Return the copy of a sweep's ledger in its storage, open; it is downloaded to `copy`.

    Raise a `UsageError` if there is none, or it is damaged.
    """
    storage = storage_of(paths)
    assert storage is not None
    if not storage.get_file(LEDGER, copy):
        raise UsageError(f"There is no ledger at {storage.shown}.")
    return _open_copy(copy, storage, paths)


@contextlib.contextmanager
def open_backup(
    paths: SweepPaths, say: Callable[[str], None], clock: Clock | None = None
) -> Iterator[LedgerBackup | None]:
    """Yield the backup of a sweep's ledger; None if the sweep's storage is a local folder.

    This driver holds the sweep's lease in its storage until the block ends.

    Raises:
        UsageError: another driver holds the lease, or the storage cannot be used.
    """
    storage = storage_of(paths)
    if storage is None:
        yield None
        return
    try:
        lease = leases.take(storage, say, clock=clock)
    except StorageError as error:
        raise UsageError(str(error)) from error
    with contextlib.closing(LedgerBackup(paths, lease, say)) as backup:
        yield backup


class LedgerBackup:
    """Copies a sweep's ledger to its storage after every change.

    Call `start`, which also starts the thread that copies, and `stop`; a simulation calls `step`
    by hand instead.
    """

    def __init__(self, paths: SweepPaths, lease: leases.Lease, say: Callable[[str], None]) -> None:
        self.paths, self.storage, self.lease = paths, lease.storage, lease
        self._say, self._clock = say, lease.clock
        self._ledger: Ledger  # from `start` on
        self.copied_seq = 0  # number of the latest change that the copy is known to hold
        self._copied_position = (-1, -1)
        self._pause_s = EVERY_S
        self._is_ended = False
        self._thread = StepThread("ledger-backup", self.step)
        self._is_behind = False  # the last attempt to copy failed
        self._messages: collections.deque[str] = collections.deque()

    def fetch(self) -> None:
        """Replace this machine's ledger by the copy if the copy holds more.

        Every driver adds its token to the ledger's list of drivers and copies that before anything
        else. If the lists of two ledgers differ, one ledger is the state that the other started
        from, or the work of a driver that was replaced. If they are equal, the longer ledger
        holds everything.

        Raises:
            UsageError: the copy is damaged, or the storage cannot be used.
        """
        paths = self.paths
        with tempfile.TemporaryDirectory(dir=paths.root, prefix=".fetched-") as folder:
            copy = Path(folder) / LEDGER
            try:
                if not self.storage.get_file(LEDGER, copy):
                    return
                theirs = _identity(_open_copy(copy, self.storage, paths))
            except StorageError as error:
                raise UsageError(str(error)) from error
            if paths.ledger.exists():
                with contextlib.suppress(LedgerError):  # a damaged ledger is replaced as well
                    if _holds_all(_identity(open_ledger(paths.ledger)), theirs):
                        return
                self._put_aside()
            # Checkpoints here belong to the replaced history; the storage has the valid ones.
            shutil.rmtree(paths.trials, ignore_errors=True)
            copy.replace(paths.ledger)
        self._say(f"Resuming from the copy of the ledger in {self.storage.shown}.")

    def start(self, ledger: Ledger, *, in_thread: bool = True) -> None:
        """Make the first copy and start the thread; raise a `UsageError` if the copy fails."""
        ledger.put("drivers", [*ledger.header().drivers, self.lease.token])
        self._ledger = ledger
        try:
            self._copy(keep_trying_s=None)
        except (StorageError, leases.LeaseLostError) as error:
            raise UsageError(str(error)) from error
        if in_thread:
            self._thread.start()

    def step(self) -> float | None:
        """Copy what has changed; return the seconds until the next time, None after the last."""
        if self._is_ended:
            return None
        began_s = self._clock.monotonic_s()
        try:
            if not self._has_all():
                self._copy(keep_trying_s=0)
        except leases.LeaseLostError:
            return None
        except Exception as error:  # a full disk here does not raise pyarrow's error
            self._pause_s = min(2 * self._pause_s, AT_LATEST_S)
            if not self._is_behind and not self._is_ended:
                self._is_behind = True
                self._messages.append(
                    "The copy of the ledger in the storage cannot be updated now. The sweep "
                    f"continues and keeps trying. {redacted(str(error))}"
                )
        else:
            took_s = self._clock.monotonic_s() - began_s
            self._pause_s = min(max(EVERY_S, _PAUSE_PER_COPY * took_s), AT_LATEST_S)
            if self._is_behind:
                self._is_behind = False
                self._messages.append("The copy of the ledger is up to date again.")
        return self._pause_s

    def tell(self, say: Callable[[str], None]) -> None:
        """Print once that the copy is behind, and once that it is up to date again."""
        while self._messages:
            say(self._messages.popleft())

    def flush(self, limit_s: Callable[[], float]) -> bool:
        """Wait, up to a limit, until the copy holds everything; return whether it does."""
        began_s = self._clock.monotonic_s()
        while not self._has_all():
            passed_s = self._clock.monotonic_s() - began_s
            if passed_s > limit_s() or self.lease.lost:
                return False
            if self._thread.is_alive():
                self._thread.wake()
            else:
                self.step()
            self._clock.sleep(0.2)
        return True

    def stop(self) -> None:
        """Stop copying; call it before the ledger is closed."""
        self._is_ended = True
        self._thread.wake()
        if self._thread.is_alive() and not self._is_behind:  # else the storage may not answer
            self._thread.join(5.0)

    def close(self) -> None:
        """Stop copying and release the lease."""
        self.stop()
        if self._is_behind:
            self.lease.stop()  # it becomes stale
        else:
            self.lease.release()

    def discard(self) -> None:
        """Stop copying and delete the copy of a sweep that has not run a trial."""
        self.stop()
        with contextlib.suppress(StorageError):
            self.storage.delete(LEDGER)

    def _has_all(self) -> bool:
        return self._copied_position == self._ledger.database.position()

    def _copy(self, *, keep_trying_s: float | None) -> None:
        # Read before the copy is made: the copy may hold more than this, never less.
        position = self._ledger.database.position()
        local = self.paths.root / ".ledger.copy"
        try:
            self._ledger.database.copy_to(local)
            content = local.read_bytes()
        finally:
            local.unlink(missing_ok=True)
        self.lease.check()  # never replace the copy of a driver that has taken over
        self.storage.put(LEDGER, content + _trailer(content), keep_trying_s=keep_trying_s)
        self._copied_position, self.copied_seq = position, position[0]

    def _put_aside(self) -> None:
        ledger = self.paths.ledger
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                ledger.with_name(LEDGER + end).replace(ledger.with_name(f"{LEDGER}.before{end}"))
        self._say(
            f"This machine's ledger was behind; it is kept as {LEDGER}.before in {self.paths.root}."
        )


def _open_copy(copy: Path, storage: Storage, paths: SweepPaths) -> Ledger:
    """Return a fetched copy, open, after its trailing digest was checked and removed."""
    written = copy.read_bytes()
    content = written[: -len(_trailer(b""))]
    problem = "its SHA-256 is not the one at its end"
    if written == content + _trailer(content):
        copy.write_bytes(content)
        try:
            ledger = open_ledger(copy)
        except LedgerError as error:
            problem = str(error)
        else:
            try:
                check_belongs(ledger, paths)
            except LedgerError as error:
                ledger.close()
                raise UsageError(str(error).replace(str(paths.ledger), storage.shown)) from error
            return ledger
    way_out = "Put an earlier version of it in place, or start the sweep under another --name."
    if paths.ledger.exists():
        way_out = f"Delete it to resume from this machine's ledger, {paths.ledger}."
    raise UsageError(
        f"The copy of the ledger at {storage.shown}/{LEDGER} is damaged: {problem}. {way_out}"
    )


def _trailer(content: bytes) -> bytes:
    """Return the digest at the end of a copy; SQLite ignores bytes after its last page."""
    return f"\nsha256:{hashlib.sha256(content).hexdigest()}\n".encode()


def _identity(ledger: Ledger) -> tuple[str, list[str], int]:
    """Return a ledger's sweep id, its drivers and the number of its last change, and close it."""
    with contextlib.closing(ledger):
        header = ledger.header()
        return header.sweep_id, list(header.drivers), ledger.seq


def _holds_all(ours: tuple[str, list[str], int], theirs: tuple[str, list[str], int]) -> bool:
    """Return whether our ledger holds everything that theirs holds."""
    (sweep_id, drivers, seq), (their_sweep_id, their_drivers, their_seq) = ours, theirs
    is_later = len(drivers) > len(their_drivers) or seq >= their_seq
    return is_later and (sweep_id, drivers[: len(their_drivers)]) == (their_sweep_id, their_drivers)
