"""What the checks of `verify` share: a sweep's ledger, read once, and the form of a finding."""

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
class Breach:
    """One thing that does not hold. `where` names the trial, or is empty for the whole sweep."""

    promise: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.where + ': ' if self.where else ''}{self.text}"


@dataclass(frozen=True, slots=True)
class Result:
    """What one check found. `note` says what could not be checked."""

    promise: str
    what: str
    checked: int
    breaches: list[Breach]
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A sweep as the checks see it. `driver` says who runs it, None when nobody does."""

    paths: SweepPaths
    ledger: Ledger
    driver: str | None
    header: SweepHeader
    trials: list[Trial]
    attempts: Mapping[str, list[Attempt]]
    rows: Mapping[str, list[EpochRow]]


@contextlib.contextmanager
def facts_of(paths: SweepPaths, driver: str | None) -> Iterator[Snapshot]:
    """Yield what this machine's ledger of a sweep says, from a copy that goes with the block.

    Args:
        paths: the sweep's.
        driver: who runs it, None when nobody does.

    Raises:
        LedgerError: it cannot be read, or SQLite's own check of the file finds damage.
    """
    with local_copy(paths, driver) as ledger:
        yield read(paths, ledger, driver)


def read(paths: SweepPaths, ledger: Ledger, driver: str | None) -> Snapshot:
    """Return what a sweep's ledger says, read once.

    Args:
        paths: the sweep's.
        ledger: a copy of it.
        driver: who runs it, None when nobody does.
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
    """Return how a trial is named to the user: its run's name and its signature."""
    return f"{trial.name} ({trial.signature})"


def is_open(attempts: list[Attempt]) -> bool:
    """Return whether a trial's last attempt has not ended."""
    return bool(attempts) and attempts[-1].outcome is None


def asked_for(facts: Snapshot) -> dict[str, int]:
    """Return how many trials of each variant were asked for, by the command that wanted most."""
    planned: dict[str, int] = {}
    for trial in facts.trials:
        if trial.stage == "final":
            continue
        planned[trial.variant] = max(planned.get(trial.variant, 0), trial.number + 1)
    return {**planned, **facts.header.asked}


def trials_left(facts: Snapshot) -> int:
    """Return how many trials that were ever asked for have not ended."""
    searched = [trial for trial in facts.trials if trial.stage == "search"]
    ended = sum(trial.status in ENDED for trial in searched)
    unended = sum(trial.status not in ENDED for trial in facts.trials) - len(searched) + ended
    return max(sum(asked_for(facts).values()) - ended, 0) + unended
