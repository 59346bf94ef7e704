"""A sweep's ledger, read once for all checks, and what a check returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.ledger.header import SweepHeader
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import ENDED, Attempt, EpochRow, Trial
from orchestrator.storage.paths import SweepPaths


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one check. `note` says what could not be checked, and why."""

    area: str  # "ledger", "checkpoints", "decisions" or "MLflow"
    what: str  # must hold
    checked: int  # number of trials, epochs or values
    problems: list[str]  # each with its area and the trial, as it is printed
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

    def problems(self, area: str, of: Callable[[Snapshot, Trial], Iterable[str]]) -> list[str]:
        """Return the problems that `of` finds in each trial."""
        return [text for trial in self.trials for text in problems_of(area, trial, of(self, trial))]


def read_snapshot(paths: SweepPaths, ledger: Ledger, driver: str | None) -> Snapshot:
    """Return a snapshot of a sweep from a copy of its ledger; `driver` as in `Snapshot`."""
    trials = ledger.trials()
    attempts: dict[str, list[Attempt]] = {trial.signature: [] for trial in trials}
    for attempt in ledger.attempts():
        attempts.setdefault(attempt.signature, []).append(attempt)
    return Snapshot(
        paths=paths,
        ledger=ledger,
        driver=driver,
        header=ledger.header(),
        trials=trials,
        attempts=attempts,
        rows={s: ledger.epochs(s) for s in {*attempts, *ledger.latest_epochs()}},
    )


def name_of(trial: Trial) -> str:
    """Return a trial's name in problems: the name of its MLflow run, and its signature."""
    return f"{trial.name} ({trial.signature})"


def problems_of(area: str, trial: Trial, texts: Iterable[str]) -> list[str]:
    """Return the problems of a trial, each with its area and the trial's name."""
    return [f"{area}: {name_of(trial)}: {text}" for text in texts]


def is_open(attempts: list[Attempt]) -> bool:
    """Return whether a trial's last attempt has not ended."""
    return bool(attempts) and attempts[-1].outcome is None


def requested_trials(snapshot: Snapshot) -> dict[str, int]:
    """Return the most search trials that any command requested, by variant."""
    planned: dict[str, int] = {}
    for trial in snapshot.trials:
        if trial.stage == "search":
            planned[trial.variant] = max(planned.get(trial.variant, 0), trial.number + 1)
    return {**planned, **snapshot.header.asked}


def trials_left(snapshot: Snapshot) -> int:
    """Return how many of the requested trials have not ended."""
    left = 0
    for variant, requested in requested_trials(snapshot).items():
        own = [trial for trial in snapshot.trials if trial.variant == variant]
        searched = [t for t in own if t.stage == "search" and t.status in ENDED]
        finals = [t for t in own if t.stage == "final"]
        unplanned = _finals_requested(snapshot, variant) - len(finals)
        if len(searched) >= requested and all(trial.best_value is None for trial in searched):
            unplanned = 0  # there is no best trial to train again
        left += max(requested - len(searched), 0) + max(unplanned, 0)
        left += sum(trial.status not in ENDED for trial in finals)
    return left


def _finals_requested(snapshot: Snapshot, variant: str) -> int:
    header = snapshot.header
    if not header.plan.space.params.get(variant):  # nothing to search
        return 0
    return int(header.options.get("final_seeds", header.space_own.get("final_seeds", 0)))
