"""The only door to the ledger: one SQLite file per sweep, from which everything else is a view.

It holds planned trials, their attempts, one row of metrics per (trial, epoch), and what the test
part said of the trials that it evaluated. One process writes (the driver), any number read. Every
change takes the next number of one sequence, so "the results a decision was made from" is a single
integer. Rows of `epochs` and `evaluations` are written once and never changed. It knows nothing of
Ray, Optuna or MLflow.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.ledger.records import ENDED, Attempt, EpochRow, Trial
from trainables.metrics import METRIC_NAMES

if TYPE_CHECKING:
    from orchestrator.ledger.records import Stage, TrialStatus

SCHEMA = 6  # of the tables, and of the signatures in them
# Ledgers of schema 5 can be read, not written: their signatures were computed from other names.
READABLE = (5, SCHEMA)
_NAMES_OF_SCHEMA_5 = {
    "side": "image_size",
    "side_px": "image_size_px",
    "side_by_variant": "image_size_by_variant",
}


_TABLES = f"""
CREATE TABLE sweep (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE trials (
    signature TEXT PRIMARY KEY,
    variant TEXT NOT NULL,
    stage TEXT NOT NULL,
    number INTEGER NOT NULL,       -- within its variant and stage, from 0
    origin TEXT,                   -- of a final one: the search trial it trains again
    config TEXT NOT NULL,          -- the whole TrainConfig, JSON
    params TEXT NOT NULL,          -- the suggestion, JSON
    seen_seq INTEGER NOT NULL,     -- the suggestion was made from what had happened up to here
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
    resumed_from TEXT,             -- the checkpoint it went on from
    micro_batch_size INTEGER NOT NULL,
    host TEXT,
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
    """The ledger cannot be read or is not one of ours."""


class Ledger:
    """An open ledger. Safe to use from several threads; only one process may write."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.schema = int(connection.execute("PRAGMA user_version").fetchone()[0])
        self._lock = threading.RLock()
        connection.row_factory = sqlite3.Row
        row = connection.execute(
            "SELECT max(coalesce((SELECT max(changed_seq) FROM trials), 0),"
            " coalesce((SELECT max(seq) FROM epochs), 0)) AS seq"
        ).fetchone()
        self._seq = int(row["seq"])
        # What was read of trials and epochs, so that only what is new has to be read again: a
        # display and its like look twice a second at thousands of trials.
        self._trials: dict[str, Trial] = {}
        self._latest: dict[str, EpochRow] = {}
        self._trials_seq = self._latest_seq = -1

    def close(self) -> None:
        """Close the file; the journal is folded back into it."""
        with self._lock:
            self._connection.close()

    # The sweep's own facts.

    def get(self, key: str, default: Any = None) -> Any:
        """Return one fact of the sweep, decoded from JSON."""
        row = self._one("SELECT value FROM sweep WHERE key = ?", key)
        return default if row is None else self._decoded(row["value"])

    def facts(self) -> dict[str, Any]:
        """Return all facts of the sweep, by key; `header.read_header` gives them types."""
        rows = self._all("SELECT key, value FROM sweep")
        return {row["key"]: self._decoded(row["value"]) for row in rows}

    def _decoded(self, text: str) -> Any:
        """Return a JSON value, with the names of today where an earlier schema had others."""
        return json.loads(text, object_hook=_renamed if self.schema == 5 else None)

    def _trial(self, row: sqlite3.Row) -> Trial:
        decoded = {name: self._decoded(row[name]) for name in ("config", "params")}
        return Trial(**{**dict(row), **decoded})

    def check_schema(self) -> None:
        """Refuse to go on from a ledger of an earlier schema.

        Raises:
            UsageError: it was written by an earlier version.
        """
        if self.schema != SCHEMA:
            raise UsageError(
                f"This sweep was recorded by an earlier version (ledger schema {self.schema}; now "
                f"{SCHEMA}), which computed signatures differently: reports and predictions can be "
                "made from it, but it cannot be resumed or verified. Start a new sweep under "
                "another --name."
            )

    def put(self, key: str, value: Any) -> None:
        """Store one fact of the sweep durably."""
        with self._change() as connection:
            connection.execute(
                "INSERT INTO sweep VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                (key, json.dumps(value, sort_keys=True)),
            )

    @property
    def seq(self) -> int:
        """The number of the latest change."""
        return self._seq

    def position(self) -> tuple[int, int]:
        """Return the number of the latest change, and how many rows this connection has written.

        A copy has everything while the second is unchanged: not every change has a number.
        """
        with self._lock:  # not in the middle of a change
            return self._seq, self._connection.total_changes

    # What is written.

    def plan_trial(
        self,
        *,
        signature: str,
        variant: str,
        number: int,
        config: Mapping[str, Any],
        params: Mapping[str, Any],
        seen_seq: int,
        stage: Stage = "search",
        origin: str | None = None,
    ) -> None:
        """Store a trial before it starts, with what its suggestion was made from."""
        with self._change() as connection:
            seq = self._next()
            connection.execute(
                "INSERT INTO trials (signature, variant, stage, number, origin, config, params,"
                " seen_seq, planned_seq, changed_seq, status)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'planned')",
                (
                    *(signature, variant, stage, number, origin, _json(config), _json(params)),
                    *(seen_seq, seq, seq),
                ),
            )

    def start_attempt(
        self,
        signature: str,
        *,
        resumed_from: str | None,
        micro_batch_size: int,
        log_name: str = "attempt_{attempt}.log",
    ) -> int:
        """Open the next attempt at a trial and return its number, counted from 1.

        From here on rows of earlier attempts are refused.
        """
        with self._change() as connection:
            attempt = (
                1
                + connection.execute(
                    "SELECT coalesce(max(attempt), 0) FROM attempts WHERE signature = ?",
                    (signature,),
                ).fetchone()[0]
            )
            log = f"trials/{signature}/{log_name.format(attempt=attempt)}"
            connection.execute(
                "INSERT INTO attempts (signature, attempt, started_s, resumed_from,"
                " micro_batch_size, log) VALUES (?, ?, ?, ?, ?, ?)",
                (signature, attempt, time.time(), resumed_from, micro_batch_size, log),
            )
            connection.execute(
                "UPDATE trials SET status = 'running', ended_seq = NULL, changed_seq = ?"
                " WHERE signature = ?",
                (self._next(), signature),
            )
            return int(attempt)

    def record_epoch(
        self,
        signature: str,
        attempt: int,
        epoch: int,
        metrics: Mapping[str, float],
        checkpoint: str | None,
    ) -> bool:
        """Store one epoch's metrics; return whether they were new.

        A row of an attempt that is not the trial's latest open one, or of an epoch that is there
        already, changes nothing: the first values stay.
        """
        with self._change() as connection:
            known = connection.execute(
                "SELECT 1 FROM epochs WHERE signature = ? AND epoch = ?", (signature, epoch)
            ).fetchone()
            if known or not self._is_latest(signature, attempt):
                return False
            seq = self._next()
            marks = ", ".join("?" * (6 + len(METRIC_NAMES)))
            connection.execute(
                f"INSERT INTO epochs VALUES ({marks})",
                (
                    *(seq, signature, epoch, attempt, time.time(), checkpoint),
                    *(_finite(metrics[name]) for name in METRIC_NAMES),
                ),
            )
            connection.execute(
                "UPDATE trials SET changed_seq = ? WHERE signature = ?", (seq, signature)
            )
            return True

    def record_evaluation(self, signature: str, attempt: int, result: Mapping[str, Any]) -> bool:
        """Store what the test split said of a trial; return whether it was new.

        As with epochs: only of the latest open attempt, and the first one stays.
        """
        with self._change() as connection:
            known = connection.execute(
                "SELECT 1 FROM evaluations WHERE signature = ?", (signature,)
            ).fetchone()
            if known or not self._is_latest(signature, attempt):
                return False
            connection.execute(
                "INSERT INTO evaluations VALUES (?, ?, ?, ?)",
                (signature, attempt, time.time(), _json(result)),
            )
            connection.execute(
                "UPDATE trials SET changed_seq = ? WHERE signature = ?", (self._next(), signature)
            )
            return True

    def end_attempt(
        self,
        signature: str,
        attempt: int,
        *,
        outcome: str,
        failure_class: str | None = None,
        failure_text: str | None = None,
        trial_status: TrialStatus,
        best: tuple[int, float] | None = None,
    ) -> None:
        """Close an attempt and say how its trial stands now, in one transaction.

        Args:
            signature: the trial.
            attempt: its number.
            outcome: "complete", "stopped", "diverged", "failed" or "lost" (its driver died).
            failure_class: one of `failures.FailureClass`, for a failed one.
            failure_text: the traceback.
            trial_status: "running" when another attempt will follow.
            best: best epoch and its value, where the trial ended with one.
        """
        with self._change() as connection:
            connection.execute(
                "UPDATE attempts SET ended_s = ?, outcome = ?, failure_class = ?,"
                " failure_text = ? WHERE signature = ? AND attempt = ?",
                (time.time(), outcome, failure_class, failure_text, signature, attempt),
            )
            seq = self._next()
            ended = seq if trial_status in ENDED else None
            epoch, value = best or (None, None)
            connection.execute(
                "UPDATE trials SET status = ?, changed_seq = ?, ended_seq = ?, best_epoch = ?,"
                " best_value = ? WHERE signature = ?",
                (trial_status, seq, ended, epoch, value, signature),
            )

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy of the ledger with SQLite's own backup, then rename it there."""
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)  # of a copy that was killed
        with self._lock, closing(sqlite3.connect(temporary)) as target:
            self._connection.backup(target)
        temporary.replace(path)

    # What is read.

    def trials(self, stage: Stage | None = None, *, changed_after: int = -1) -> list[Trial]:
        """Return the trials in the order they were planned.

        Args:
            stage: only those of one; None: all.
            changed_after: only those that changed since this number.
        """
        with self._lock:
            self._read_trials()
            return [
                trial
                for trial in self._trials.values()
                if trial.changed_seq > changed_after and stage in (None, trial.stage)
            ]

    def trial(self, signature: str) -> Trial:
        """Return one trial; KeyError when there is none of that signature."""
        with self._lock:
            self._read_trials()
            return self._trials[signature]

    def _read_trials(self) -> None:
        """Read what has changed; whoever is planned later comes later, so the order is kept."""
        rows = self._all(
            "SELECT * FROM trials WHERE changed_seq > ? ORDER BY planned_seq", self._trials_seq
        )
        changed = [self._trial(row) for row in rows]
        self._trials |= {trial.signature: trial for trial in changed}
        self._trials_seq = max([self._trials_seq, *(trial.changed_seq for trial in changed)])

    def attempts(self, signature: str | None = None) -> list[Attempt]:
        """Return all attempts, or one trial's; each trial's in their order, whatever the clock."""
        rows = self._all(
            "SELECT * FROM attempts WHERE ?1 IS NULL OR signature = ?1 ORDER BY attempt, started_s",
            signature,
        )
        return [Attempt(**dict(row)) for row in rows]

    def epochs(self, signature: str, *, after: int = -1) -> list[EpochRow]:
        """Return one trial's rows in the order of their epochs, or those that arrived since."""
        rows = self._all(
            "SELECT * FROM epochs WHERE signature = ? AND seq > ? ORDER BY epoch", signature, after
        )
        return [_epoch(row) for row in rows]

    def values_at(self, variant: str, epoch: int, metric: str, *, up_to: int) -> list[float]:
        """Return a metric of a variant's search trials at one epoch, in order of arrival, NaN too.

        Args:
            variant: whose trials.
            epoch: counted from 0.
            metric: one of `METRIC_NAMES`.
            up_to: only rows that had arrived by this sequence number.
        """
        if metric not in METRIC_NAMES:
            raise KeyError(metric)
        rows = self._all(
            f"SELECT e.{metric} AS value FROM epochs e JOIN trials t USING (signature)"
            " WHERE t.variant = ? AND t.stage = 'search' AND e.epoch = ? AND e.seq <= ?"
            " ORDER BY e.seq",
            variant,
            epoch,
            up_to,
        )
        return [_nan(row["value"]) for row in rows]

    def latest_epochs(self) -> dict[str, EpochRow]:
        """Return the last epoch's row of every trial that has one, by signature."""
        with self._lock:
            newest = self._one("SELECT max(seq) AS seq FROM epochs")
            rows = self._all(
                "SELECT e.* FROM epochs e JOIN (SELECT signature, max(epoch) AS epoch FROM epochs"
                " WHERE seq > ? GROUP BY signature) USING (signature, epoch)",
                self._latest_seq,
            )
            for row in map(_epoch, rows):
                known = self._latest.get(row.signature, row)
                self._latest[row.signature] = max(row, known, key=lambda each: each.epoch)
            self._latest_seq = newest["seq"] or 0 if newest else 0
            return dict(self._latest)

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Return what the test split said, by signature of the trials that were evaluated by it."""
        rows = self._all("SELECT signature, result FROM evaluations ORDER BY signature")
        return {row["signature"]: json.loads(row["result"]) for row in rows}

    def evaluation(self, signature: str) -> dict[str, Any] | None:
        """Return what the test split said of one trial, None where it was not asked."""
        row = self._one("SELECT result FROM evaluations WHERE signature = ?", signature)
        return None if row is None else json.loads(row["result"])

    def integrity_problems(self) -> list[str]:
        """Return what SQLite's own check of the file finds; it reads every page."""
        try:
            found = [str(row[0]) for row in self._all("PRAGMA integrity_check")]
        except sqlite3.DatabaseError as error:
            return [str(error)]
        return [] if found == ["ok"] else found

    def _is_latest(self, signature: str, attempt: int) -> bool:
        """Return whether an attempt is its trial's latest and still open."""
        row = self._one(
            "SELECT attempt, outcome FROM attempts WHERE signature = ?"
            " ORDER BY attempt DESC LIMIT 1",
            signature,
        )
        return row is not None and row["attempt"] == attempt and row["outcome"] is None

    def _one(self, query: str, *values: Any) -> sqlite3.Row | None:
        with self._lock:
            row: sqlite3.Row | None = self._connection.execute(query, values).fetchone()
            return row

    def _all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction; on an error nothing of it remains, the sequence included."""
        with self._lock:
            seq = self._seq
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                self._seq = seq
                if self._connection.in_transaction:
                    with contextlib.suppress(sqlite3.OperationalError):
                        self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise LedgerError(
                        f"The ledger cannot be written: {error}. What it holds is intact."
                    ) from error
                raise


def create_ledger(path: Path, facts: Mapping[str, Any]) -> Ledger:
    """Create a new ledger with the sweep's facts; it exists with all of them or not at all.

    Raises:
        FileExistsError: there is one already.
    """
    if path.exists():
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    # A journal that outlived its ledger would be played back into the new one.
    for leftover in (temporary, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
        leftover.unlink(missing_ok=True)
    connection = sqlite3.connect(temporary, isolation_level=None)
    connection.executescript(_TABLES)
    connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.executemany(
        "INSERT INTO sweep VALUES (?, ?)", [(key, _json(value)) for key, value in facts.items()]
    )
    connection.close()
    temporary.rename(path)
    return open_ledger(path)


def open_ledger(path: Path, *, read_only: bool = False) -> Ledger:
    """Open an existing ledger.

    Raises:
        LedgerError: the file is missing, damaged, or was written by another version.
    """
    if not path.is_file():
        raise LedgerError(f"There is no ledger at {path}.")
    mode = "ro" if read_only else "rw"
    connection = None
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,  # transactions are explicit
            check_same_thread=False,
            timeout=60,
        )
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise sqlite3.DatabaseError("it is empty")
        if version not in READABLE:
            raise LedgerError(
                f"{path} has schema {version}; this version reads {READABLE[0]} to {SCHEMA}. Use "
                "the version of the orchestrator that wrote it, or start a sweep under another "
                "--name."
            )
        if not read_only:  # not before it is known to be ours: this writes
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
            # A file cut off or overwritten can answer well until the damaged page is read.
            damage = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if damage != "ok":
                raise sqlite3.DatabaseError(damage)
        return Ledger(connection)
    except (sqlite3.DatabaseError, LedgerError) as error:
        if connection is not None:
            connection.close()
        if isinstance(error, LedgerError):
            raise
        raise LedgerError(
            f"{path} is not a readable ledger ({error}). Restore it from a copy, or move the "
            "folder away and start anew."
        ) from error


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    return {_NAMES_OF_SCHEMA_5.get(name, name): value for name, value in values.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # SQLite has no NaN


def _epoch(row: sqlite3.Row) -> EpochRow:
    values = dict(row)
    metrics = {name: _nan(values.pop(name)) for name in METRIC_NAMES}
    return EpochRow(**values, metrics=metrics)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
