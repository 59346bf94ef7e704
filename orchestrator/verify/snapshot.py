"""A sweep's ledger, read once for all checks, and what a check returns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.ledger.header import SweepHeader, read_header
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import ENDED, Attempt, EpochRow, Trial
from orchestrator.ledger.snapshot import local_copy
from orchestrator.storage.paths import SweepPaths


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem that a check found. `where` names the trial; it is empty for the whole sweep."""

    area: str  # "ledger", "checkpoints", "decisions" or "MLflow"
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.area}: {self.where + ': ' if self.where else ''}{self.text}"


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one check. `note` says what could not be checked, and why."""

    area: str
    what: str  # must hold
    checked: int  # number of trials, epochs or values
    problems: list[Problem]
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A sweep's records. `driver` is the process that runs the sweep, None if none does."""

    paths: SweepPaths
    ledger: Ledger
    driver: str | None
    header: SweepHeader
    trials: list[Trial]
    attempts: Mapping[str, list[Attempt]]
    rows: Mapping[str, list[EpochRow]]


@contextlib.contextmanager
def open_snapshot(paths: SweepPaths, driver: str | None) -> Iterator[Snapshot]:
    """Yield a snapshot of a sweep from a copy of this machine's ledger, deleted afterwards.

    Args:
        paths: the sweep's.
        driver: the process that runs the sweep, None if none does.

    Raises:
        LedgerError: the ledger cannot be read, or SQLite's integrity check finds damage.
    """
    with local_copy(paths, driver) as ledger:
        yield read_snapshot(paths, ledger, driver)


def read_snapshot(paths: SweepPaths, ledger: Ledger, driver: str | None) -> Snapshot:
    """Return a snapshot of a sweep.

    Args:
        paths: the sweep's.
        ledger: a copy of the sweep's.
        driver: the process that runs the sweep, None if none does.
    """
    trials = ledger.trials()
    attempts: dict[str, list[Attempt]] = {trial.signature: [] for trial in trials}
    for attempt in ledger.attempts():
        attempts.setdefault(attempt.signature, []).append(attempt)
    return Snapshot(
        paths=paths,
        ledger=ledger,
        driver=driver,
        header=read_header(ledger),
        trials=trials,
        attempts=attempts,
        rows={s: ledger.epochs(s) for s in {*attempts, *ledger.latest_epochs()}},
    )


def name_of(trial: Trial) -> str:
    """Return a trial's name in problems: the name of its MLflow run, and its signature."""
    return f"{trial.name} ({trial.signature})"


def is_open(attempts: list[Attempt]) -> bool:
    """Return whether a trial's last attempt has not ended."""
    return bool(attempts) and attempts[-1].outcome is None


def requested_trials(snapshot: Snapshot) -> dict[str, int]:
    """Return the most search trials that any command requested, by variant."""
    planned: dict[str, int] = {}
    for trial in snapshot.trials:
        if trial.stage == "final":
            continue
        planned[trial.variant] = max(planned.get(trial.variant, 0), trial.number + 1)
    return {**planned, **snapshot.header.asked}


def trials_left(snapshot: Snapshot) -> int:
    """Return how many of the requested trials have not ended."""
    searched = [trial for trial in snapshot.trials if trial.stage == "search"]
    ended = sum(trial.status in ENDED for trial in searched)
    unended = sum(trial.status not in ENDED for trial in snapshot.trials) - len(searched) + ended
    return max(sum(requested_trials(snapshot).values()) - ended, 0) + unended
