"""`Ledger`: the record of a sweep, one SQLite file from which everything else can be rebuilt.

One process, the driver, writes; any number may read. Every change gets the next number of one
sequence, so a single integer names the results that a decision was made from. Rows of `epochs` and
`evaluations` are written once and never changed.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from orchestrator.clock import Clock
from orchestrator.ledger import database
from orchestrator.ledger.database import Database, LedgerError, encode
from orchestrator.ledger.header import SweepHeader
from orchestrator.ledger.records import ENDED, Attempt, EpochRow, Metrics, Stage, Trial, TrialStatus
from orchestrator.storage.paths import SweepPaths, attempt_log
from trainables.metrics import METRIC_NAMES


class Ledger:
    """An open ledger. Several threads may use it; only one process may write."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database, self._clock = database, clock
        # Trials and latest epochs are kept, so that only changes are read again: the display reads
        # them twice a second, and a sweep can have thousands of trials.
        self._trials: dict[str, Trial] = {}
        self._latest: dict[str, EpochRow] = {}
        self._trials_seq = self._latest_seq = -1

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    @property
    def seq(self) -> int:
        """The number of the latest change."""
        return self.database.seq

    # Facts of the sweep.

    def facts(self) -> dict[str, Any]:
        """Return all facts of the sweep, by key."""
        rows = self.database.all("SELECT key, value FROM sweep")
        return {row["key"]: self.database.decode(row["value"]) for row in rows}

    def header(self) -> SweepHeader:
        """Return the facts of the sweep, as they are now, with their types."""
        return SweepHeader.from_facts(self.facts())

    def put(self, key: str, value: Any) -> None:
        """Store one fact of the sweep."""
        with self.database.change() as connection:
            connection.execute(
                "INSERT INTO sweep VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                (key, encode(value)),
            )

    # Writing.

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
        """Store a trial before it starts, with the last change its suggestion took into account."""
        with self.database.change() as connection:
            seq = self.database.next_seq()
            connection.execute(
                "INSERT INTO trials (signature, variant, stage, number, origin, config, params,"
                " seen_seq, planned_seq, changed_seq, status)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'planned')",
                (
                    *(signature, variant, stage, number, origin, encode(config), encode(params)),
                    *(seen_seq, seq, seq),
                ),
            )

    def start_attempt(
        self, signature: str, *, resumed_from: str | None, micro_batch_size: int
    ) -> int:
        """Open the next attempt of a trial and return its number, counted from 1.

        From now on rows of earlier attempts are refused.
        """
        with self.database.change() as connection:
            query = "SELECT coalesce(max(attempt), 0) + 1 FROM attempts WHERE signature = ?"
            attempt = int(connection.execute(query, (signature,)).fetchone()[0])
            log = attempt_log(signature, attempt)
            connection.execute(
                "INSERT INTO attempts (signature, attempt, started_s, resumed_from,"
                " micro_batch_size, log) VALUES (?, ?, ?, ?, ?, ?)",
                (signature, attempt, self._clock.now_s(), resumed_from, micro_batch_size, log),
            )
            connection.execute(
                "UPDATE trials SET status = 'running', ended_seq = NULL, changed_seq = ?"
                " WHERE signature = ?",
                (self.database.next_seq(), signature),
            )
            return attempt

    def record_epoch(
        self, signature: str, attempt: int, epoch: int, metrics: Metrics, checkpoint: str | None
    ) -> bool:
        """Store one epoch's metrics; return whether they were new.

        Nothing changes if the epoch has a row already, which keeps its first values, or if the
        attempt is not the trial's latest or has ended.
        """
        with self.database.change() as connection:
            query = "SELECT 1 FROM epochs WHERE signature = ? AND epoch = ?"
            known = self.database.one(query, signature, epoch)
            if known or not self._is_latest(signature, attempt):
                return False
            seq = self.database.next_seq()
            marks = ", ".join("?" * (6 + len(METRIC_NAMES)))
            connection.execute(
                f"INSERT INTO epochs VALUES ({marks})",
                (
                    *(seq, signature, epoch, attempt, self._clock.now_s(), checkpoint),
                    # SQLite has no NaN.
                    *(metrics[n] if math.isfinite(metrics[n]) else None for n in METRIC_NAMES),
                ),
            )
            query = "UPDATE trials SET changed_seq = ? WHERE signature = ?"
            connection.execute(query, (seq, signature))
            return True

    def record_evaluation(self, signature: str, attempt: int, result: Mapping[str, Any]) -> bool:
        """Store a trial's evaluation on the test split; return whether it was new.

        As with epochs, the first result stays, and only the latest open attempt may add one.
        """
        with self.database.change() as connection:
            if self.evaluation(signature) is not None or not self._is_latest(signature, attempt):
                return False
            connection.execute(
                "INSERT INTO evaluations VALUES (?, ?, ?, ?)",
                (signature, attempt, self._clock.now_s(), encode(result)),
            )
            query = "UPDATE trials SET changed_seq = ? WHERE signature = ?"
            connection.execute(query, (self.database.next_seq(), signature))
            return True

    def end_attempt(
        self,
        signature: str,
        attempt: int,
        *,
        outcome: str,
        failure_class: str | None = None,
        failure_text: str | None = None,
        trial_status: TrialStatus = "running",
        best: tuple[int, float] | None = None,
    ) -> None:
        """Close an attempt and set the status of its trial, in one transaction.

        The outcome is "complete", "stopped", "diverged", "failed" or "lost" (its driver died); the
        trial's status is "running" if another attempt will follow. A failed attempt has a class of
        `retry_policy.FailureClass` and a traceback. `best` is the trial's best epoch and its value.
        """
        with self.database.change() as connection:
            connection.execute(
                "UPDATE attempts SET ended_s = ?, outcome = ?, failure_class = ?,"
                " failure_text = ? WHERE signature = ? AND attempt = ?",
                (self._clock.now_s(), outcome, failure_class, failure_text, signature, attempt),
            )
            seq = self.database.next_seq()
            ended = seq if trial_status in ENDED else None
            connection.execute(
                "UPDATE trials SET status = ?, changed_seq = ?, ended_seq = ?, best_epoch = ?,"
                " best_value = ? WHERE signature = ?",
                (trial_status, seq, ended, *(best or (None, None)), signature),
            )

    # Reading.

    def trials(self, stage: Stage | None = None, *, changed_after: int = -1) -> list[Trial]:
        """Return the trials of one stage or both, in the order they were planned.

        Only those with a change after the number `changed_after` are returned.
        """
        with self.database.lock:
            self._read_trials()
            return [
                trial
                for trial in self._trials.values()
                if trial.changed_seq > changed_after and stage in (None, trial.stage)
            ]

    def trial(self, signature: str) -> Trial:
        """Return one trial; KeyError if no trial has that signature."""
        with self.database.lock:
            self._read_trials()
            return self._trials[signature]

    def _read_trials(self) -> None:
        """Read the trials that have changed; new ones come last, so the order is kept."""
        # Ordered by +planned_seq, or SQLite would read every trial in the order of that index.
        rows = self.database.all(
            "SELECT * FROM trials WHERE changed_seq > ? ORDER BY +planned_seq", self._trials_seq
        )
        changed = []
        for row in rows:
            decoded = {name: self.database.decode(row[name]) for name in ("config", "params")}
            changed.append(Trial(**{**dict(row), **decoded}))
        self._trials |= {trial.signature: trial for trial in changed}
        self._trials_seq = max([self._trials_seq, *(trial.changed_seq for trial in changed)])

    def attempts(self, signature: str | None = None) -> list[Attempt]:
        """Return all attempts, or one trial's; each trial's in the order of their numbers."""
        columns = ", ".join(each.name for each in fields(Attempt))  # schema 5 has one more
        where, values = ("", ()) if signature is None else (" WHERE signature = ?", (signature,))
        query = f"SELECT {columns} FROM attempts{where} ORDER BY attempt, started_s"
        rows = self.database.all(query, *values)
        return [Attempt(**dict(row)) for row in rows]

    def epochs(self, signature: str, *, after: int = -1) -> list[EpochRow]:
        """Return one trial's rows with a number above `after`, in the order of their epochs."""
        rows = self.database.all(
            "SELECT * FROM epochs WHERE signature = ? AND seq > ? ORDER BY epoch", signature, after
        )
        return [_epoch(row) for row in rows]

    def values_at(self, variant: str, epoch: int, metric: str, *, up_to: int) -> list[float]:
        """Return a metric of a variant's search trials at one epoch, in order of arrival, with NaN.

        The epoch is counted from 0, `metric` is one of `METRIC_NAMES`, and only rows with a number
        up to `up_to` count.
        """
        if metric not in METRIC_NAMES:
            raise KeyError(metric)
        rows = self.database.all(
            f"SELECT e.{metric} AS value FROM epochs e JOIN trials t USING (signature)"
            " WHERE t.variant = ? AND t.stage = 'search' AND e.epoch = ? AND e.seq <= ?"
            " ORDER BY e.seq",
            *(variant, epoch, up_to),
        )
        return [_nan(row["value"]) for row in rows]

    def latest_epochs(self) -> dict[str, EpochRow]:
        """Return the row of the last epoch of every trial that has one, by signature."""
        with self.database.lock:
            rows = self.database.all(
                # Grouped by +signature, or SQLite would read the whole index instead of new rows.
                "SELECT e.* FROM epochs e JOIN (SELECT signature, max(epoch) AS epoch FROM epochs"
                " WHERE seq > ? GROUP BY +signature) USING (signature, epoch)",
                self._latest_seq,
            )
            for row in map(_epoch, rows):
                known = self._latest.get(row.signature, row)
                self._latest[row.signature] = max(row, known, key=lambda each: each.epoch)
                self._latest_seq = max(self._latest_seq, row.seq)
            return dict(self._latest)

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Return the results on the test split, by signature of the evaluated trials."""
        rows = self.database.all("SELECT signature, result FROM evaluations ORDER BY signature")
        return {row["signature"]: json.loads(row["result"]) for row in rows}

    def evaluation(self, signature: str) -> dict[str, Any] | None:
        """Return a trial's result on the test split, None if it was not evaluated."""
        row = self.database.one("SELECT result FROM evaluations WHERE signature = ?", signature)
        return None if row is None else json.loads(row["result"])

    def _is_latest(self, signature: str, attempt: int) -> bool:
        """Return whether an attempt is its trial's latest and has not ended."""
        query = "SELECT attempt, outcome FROM attempts WHERE signature = ? ORDER BY attempt DESC"
        row = self.database.one(query, signature)
        return row is not None and row["attempt"] == attempt and row["outcome"] is None


def create_ledger(path: Path, facts: Mapping[str, Any], clock: Clock | None = None) -> Ledger:
    """Create a new ledger with the sweep's facts; it exists with all of them or not at all.

    Raises:
        FileExistsError: there is a ledger already.
        LedgerError: it cannot be written.
    """
    database.create(path, facts)
    try:
        return open_ledger(path, clock=clock)
    except BaseException:
        database.delete(path)
        raise


def open_ledger(path: Path, *, read_only: bool = False, clock: Clock | None = None) -> Ledger:
    """Open an existing ledger.

    Raises:
        LedgerError: the file is missing, damaged, or of another version.
    """
    return Ledger(database.connect(path, read_only=read_only), clock or Clock())


def check_belongs(ledger: Ledger, paths: SweepPaths) -> None:
    """Raise a `LedgerError` if a ledger is that of another sweep than the folder's."""
    name = ledger.header().name  # ledgers of earlier versions have none
    if name not in ("", paths.name):
        raise LedgerError(
            f"{paths.ledger} must be the ledger of the sweep {paths.name!r}, but it is that of "
            f"{name!r}. Restore this sweep's own ledger; or, if its folder was renamed, rename it "
            f"back to {name!r}."
        )


def _epoch(row: sqlite3.Row) -> EpochRow:
    values = dict(row)
    metrics = {name: _nan(values.pop(name)) for name in METRIC_NAMES}
    return EpochRow(**values, metrics=metrics)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
