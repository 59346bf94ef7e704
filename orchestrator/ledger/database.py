"""The SQLite file of a ledger: its tables, opening it, transactions, copies and checks."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError, UsageError
from trainables.metrics import METRIC_NAMES

SCHEMA = 6  # of the tables, and of the signatures in them
# Ledgers of schema 5 can be read, not written: their signatures were computed from other names.
READABLE = (5, SCHEMA)
# Errors of SQLite that say nothing about a file's contents: PERM, BUSY, LOCKED, READONLY, IOERR,
# FULL, CANTOPEN.
_UNDAMAGED = (3, 5, 6, 8, 10, 13, 14)
_GONE = " (deleted)"  # ends the target of a link in /proc to a deleted file
_OLD_NAMES = {f"side{end}": f"image_size{end}" for end in ("", "_px", "_by_variant")}

_TABLES = f"""
CREATE TABLE sweep (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE trials (
    signature TEXT PRIMARY KEY,
    variant TEXT NOT NULL,
    stage TEXT NOT NULL,
    number INTEGER NOT NULL,       -- within its variant and stage, from 0
    origin TEXT,                   -- of a final trial: the search trial whose parameters it uses
    config TEXT NOT NULL,          -- the whole TrainConfig, JSON
    params TEXT NOT NULL,          -- the suggestion, JSON
    seen_seq INTEGER NOT NULL,     -- the suggestion was made from the changes up to this number
    planned_seq INTEGER NOT NULL UNIQUE,
    changed_seq INTEGER NOT NULL,  -- the last change of anything about this trial
    ended_seq INTEGER,
    status TEXT NOT NULL,
    best_epoch INTEGER,
    best_value REAL,
    UNIQUE (variant, stage, number)
);
CREATE INDEX trials_changed ON trials (changed_seq);
CREATE TABLE attempts (
    signature TEXT NOT NULL REFERENCES trials,
    attempt INTEGER NOT NULL,
    started_s REAL NOT NULL,
    ended_s REAL,
    resumed_from TEXT,             -- the checkpoint it resumed from
    micro_batch_size INTEGER NOT NULL,
    log TEXT,                      -- relative to the sweep's folder
    outcome TEXT,                  -- NULL while it runs
    failure_class TEXT,
    failure_text TEXT,
    PRIMARY KEY (signature, attempt)
) WITHOUT ROWID;
CREATE TABLE epochs (
    seq INTEGER PRIMARY KEY,       -- order of arrival
    signature TEXT NOT NULL REFERENCES trials,
    epoch INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    arrived_s REAL NOT NULL,
    checkpoint TEXT,               -- relative to the sweep's folder
    {", ".join(f"{name} REAL" for name in METRIC_NAMES)},
    UNIQUE (signature, epoch)
);
CREATE TABLE evaluations (
    signature TEXT PRIMARY KEY REFERENCES trials,
    attempt INTEGER NOT NULL,
    arrived_s REAL NOT NULL,
    result TEXT NOT NULL           -- trainables.evaluation.held_out.Evaluation, JSON
) WITHOUT ROWID;
"""


class LedgerError(OrchestratorError):
    """The ledger cannot be read, or the file is not a ledger."""


class Database:
    """An open ledger file, with a sequence number that every change increases.

    Several threads may use it; only one process may write. Hold `lock` over several reads that
    must see the same state.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection, self.path = connection, path.absolute()
        self._file = _file_id(self.path)
        self.lock = threading.RLock()
        self.schema = int(connection.execute("PRAGMA user_version").fetchone()[0])
        connection.row_factory = sqlite3.Row
        query = (
            "SELECT max(coalesce((SELECT max(changed_seq) FROM trials), 0),"
            " coalesce((SELECT max(seq) FROM epochs), 0))"
        )
        self.seq = int(connection.execute(query).fetchone()[0])

    def close(self) -> None:
        """Close the file; SQLite merges its journal into it."""
        with self.lock:
            self.connection.close()

    def check_schema(self) -> None:
        """Raise a `UsageError` if an earlier version wrote the ledger: it cannot be resumed."""
        if self.schema != SCHEMA:
            raise UsageError(
                f"This sweep was recorded by an earlier version (ledger schema {self.schema}; now "
                f"{SCHEMA}), which computed signatures differently: reports and predictions can be "
                "made from it, but it cannot be resumed or verified. Start a new sweep under "
                "another --name."
            )

    def one(self, query: str, *values: Any) -> sqlite3.Row | None:
        """Return the first row of a query, None if there is none."""
        with self.lock:
            row: sqlite3.Row | None = self.connection.execute(query, values).fetchone()
            return row

    def all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Return all rows of a query."""
        with self.lock:
            return self.connection.execute(query, values).fetchall()

    def decode(self, text: str) -> Any:
        """Return a JSON value; names of an earlier schema are replaced by today's."""
        return json.loads(text, object_hook=_rename if self.schema == 5 else None)

    def next_seq(self) -> int:
        """Return the next sequence number; call it inside `change`."""
        self.seq += 1
        return self.seq

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction; after an error nothing of it remains, the sequence included."""
        with self.lock:
            seq = self.seq
            try:
                with self.connection:  # commits or, after an error, rolls back
                    self.connection.execute("BEGIN IMMEDIATE")
                    yield self.connection
            except BaseException as error:
                self.seq = seq
                if isinstance(error, sqlite3.OperationalError):
                    raise LedgerError(
                        f"The ledger cannot be written: {error}. Its contents are intact."
                    ) from error
                raise

    def position(self) -> tuple[int, int]:
        """Return the number of the latest change, and the number of rows written since opening.

        A copy is complete while the second is unchanged: not every change has a number.
        """
        with self.lock:  # not in the middle of a change
            return self.seq, self.connection.total_changes

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy with SQLite's backup, then rename it to `path`."""
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)  # left by a process that was killed
        with self.lock, closing(sqlite3.connect(temporary)) as target:
            self.connection.backup(target)
        temporary.replace(path)

    def is_in_place(self) -> bool:
        """Return whether the path still leads to the open file, which can be moved or deleted."""
        try:
            return _file_id(self.path) == self._file
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # the disk does not answer now
            return True

    def rescue(self) -> Path:
        """Return where the contents are after the file was moved or deleted.

        If it was deleted, they are written to its path again, or beside another file there.
        """
        # SQLite does not merge the journal of a moved file when it closes it, and would apply the
        # journal that is left to another file at the path.
        with self.lock:
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for link in Path("/proc/self/fd").glob("*"):
            with suppress(OSError):  # the descriptor of this listing
                if _file_id(link) == self._file and not (to := os.readlink(link)).endswith(_GONE):
                    return Path(to)
        path = self.path
        if path.exists():
            path = path.with_name(f"{path.stem}.rescued{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.copy_to(path)
        if path == self.path:
            self._file = _file_id(path)
        return path

    def integrity_problems(self) -> list[str]:
        """Return the problems that SQLite's own check finds; it reads every page."""
        try:
            found = [str(row[0]) for row in self.all("PRAGMA integrity_check")]
        except sqlite3.DatabaseError as error:
            return [str(error)]
        return [] if found == ["ok"] else found


def _file_id(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def create(path: Path, facts: Mapping[str, Any]) -> None:
    """Create a ledger file with all facts or not at all.

    Raises:
        FileExistsError: there is one.
        LedgerError: it cannot be written.
    """
    if path.exists():
        raise FileExistsError(path)
    temporary = path.with_name(f".{path.name}.new")
    rows = [(key, encode(value)) for key, value in facts.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete(temporary)  # left by a process that was killed
        delete(path)  # SQLite would apply a journal that outlived its ledger to the new one
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.executescript(_TABLES)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
            connection.executemany("INSERT INTO sweep VALUES (?, ?)", rows)
        temporary.rename(path)
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(
            f"The ledger {path} cannot be created: {error}. Check the space on the disk, the "
            "permissions of the folder and the limits that `ulimit -a` shows, or choose another "
            "--storage."
        ) from error
    finally:
        with suppress(OSError):
            delete(temporary)


def delete(path: Path) -> None:
    """Delete a ledger file and its journals, as far as they exist."""
    for ending in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def connect(path: Path, *, read_only: bool) -> Database:
    """Open an existing ledger file.

    Raises:
        LedgerError: the file is missing, damaged, or of another version.
    """
    check_access(path, os.R_OK if read_only else os.R_OK | os.W_OK)
    try:
        with ExitStack() as after_an_error:
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}",
                uri=True,
                isolation_level=None,  # transactions are explicit
                check_same_thread=False,
                timeout=60,
            )
            after_an_error.callback(connection.close)
            _check_is_ledger(connection, path)
            if not read_only:
                _prepare_for_writing(connection)
            database = Database(connection, path)
            after_an_error.pop_all()
            return database
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNDAMAGED:
            raise LedgerError(
                f"{path} cannot be opened: {error}. This says nothing about its contents. Check "
                "the permissions of the file and its folder, the space on the disk, and that no "
                "other program locks the file."
            ) from error
        raise LedgerError(
            f"{path} is not a readable ledger ({error}). Restore it from a copy, or move the "
            "folder away and start a new sweep."
        ) from error


def check_access(path: Path, mode: int = os.R_OK) -> None:
    """Raise a `LedgerError` if there is no ledger, or this user lacks a permission for it."""
    denied = [folder for folder in (path.parent.parent, path.parent) if not _has(folder, os.X_OK)]
    if not denied and not path.is_file():
        raise LedgerError(f"There is no ledger at {path}.")
    if not denied and _has(path, mode) and (mode == os.R_OK or _has(path.parent, os.W_OK)):
        return
    use, flag = ("read", "r") if mode == os.R_OK else ("read and written", "rw")
    raise LedgerError(
        f"The ledger {path} must be {use} by this user, who has no permission for it. If it is "
        f"yours, `chmod u+{flag} {path}` and `chmod u+rwx {path.parent}` grant it."
    )


def _has(path: Path, mode: int) -> bool:
    return not path.exists() or os.access(path, mode)


def _check_is_ledger(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise sqlite3.DatabaseError("it is empty")
    facts = "SELECT count(*) FROM sweep"
    if version in READABLE and not connection.execute(facts).fetchone()[0]:
        raise sqlite3.DatabaseError("it holds no sweep")
    if version not in READABLE:
        raise LedgerError(
            f"{path} has schema {version}; this version reads {READABLE[0]} to {SCHEMA}. Use "
            "the version of the orchestrator that wrote it, or start a sweep under another --name."
        )


def _prepare_for_writing(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
    # A truncated or overwritten file can answer queries until the damaged page is read.
    damage = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if damage != "ok":
        raise sqlite3.DatabaseError(damage)


def encode(value: Any) -> str:
    """Return a value as JSON, as the ledger stores it."""
    return json.dumps(value, sort_keys=True)


def _rename(values: dict[str, Any]) -> dict[str, Any]:
    return {_OLD_NAMES.get(name, name): value for name, value in values.items()}
