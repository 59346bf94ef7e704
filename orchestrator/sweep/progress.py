"""`Progress`: how far a sweep's trials are, read from its ledger twice a second."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.ranking import is_better
from orchestrator.ledger.records import Attempt, EpochRow, Trial
from orchestrator.plan.plan import Plan
from orchestrator.search import decisions


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialProgress:
    """A trial that is running or the best one, with its epochs so far."""

    trial: Trial
    epochs: int  # that it trains if it is not stopped early
    rows: Sequence[EpochRow]
    last: float | None  # the metric's latest value; None without one
    best: tuple[int, float] | None  # the epoch, counted from 0, whose weights stand for the trial
    attempt: Attempt | None  # the latest

    @property
    def epoch(self) -> int:
        """How many epochs have ended."""
        return self.rows[-1].epoch + 1 if self.rows else 0

    @property
    def images_per_s(self) -> float | None:
        """Training images per second in the latest epoch."""
        return self.rows[-1].metrics["images_per_s"] if self.rows else None

    @property
    def is_waiting(self) -> bool:
        """Whether its latest attempt has ended and the next one has not started yet."""
        return self.attempt is None or self.attempt.outcome is not None


class Progress:
    """How far the trials of a plan are; `update` reads what has changed in the ledger.

    A sweep may have thousands of trials, so only rows of trials that are running, and of the best
    one, are read, and each row once.
    """

    def __init__(self, ledger: Ledger, plan: Plan) -> None:
        self.ledger, self.plan = ledger, plan
        self.trials: Sequence[Trial] = ()
        self.latest: Mapping[str, EpochRow] = {}  # the last epoch of each trial, by signature
        self.running: Sequence[TrialProgress] = ()
        self.waiting: Sequence[TrialProgress] = ()  # for their next attempt
        self.best: TrialProgress | None = None  # running, complete or stopped
        self._values: dict[str, float] = {}  # the best value of each trial, by signature
        self._known: dict[str, TrialProgress] = {}

    def update(self) -> None:
        """Read the ledger."""
        self.trials = [t for t in self.ledger.trials() if t.variant in self.plan.variants]
        self.latest = self.ledger.latest_epochs()
        unended = [self._read(trial) for trial in self.trials if trial.status == "running"]
        self.running = [each for each in unended if not each.is_waiting]
        self.waiting = [each for each in unended if each.is_waiting and self._resumes(each.trial)]
        ended = (trial for trial in self.trials if trial.status in ("complete", "stopped"))
        self._values = {t.signature: t.best_value for t in ended if t.best_value is not None}
        self._values |= {each.trial.signature: each.best[1] for each in unended if each.best}
        best = self._best_of(self.trials)
        self.best = self._read(best) if best else None
        kept = (*unended, self.best) if self.best else unended
        self._known = {each.trial.signature: each for each in kept}

    def best_value(self, trials: Iterable[Trial]) -> float | None:
        """Return the best value of any epoch of trials that are running or can be chosen."""
        best = self._best_of(trials)
        return self._values[best.signature] if best else None

    def _resumes(self, trial: Trial) -> bool:
        """Return whether a trial is within this command's number of trials."""
        return trial.stage == "final" or trial.number < self.plan.trials

    def _best_of(self, trials: Iterable[Trial]) -> Trial | None:
        best, mode = None, self.plan.space.mode
        for trial in trials:
            value = self._values.get(trial.signature, math.nan)
            if is_better(value, self._values[best.signature] if best else math.nan, mode):
                best = trial
        return best

    def _read(self, trial: Trial) -> TrialProgress:
        known = self._known.get(trial.signature)
        if known is not None and known.trial.changed_seq == trial.changed_seq:
            return known
        rows = list(known.rows) if known else []
        rows += self.ledger.epochs(trial.signature, after=max((r.seq for r in rows), default=-1))
        rows.sort(key=lambda row: row.epoch)  # an earlier epoch may arrive from a later attempt
        metric = self.plan.space.metric
        # Without a validation split, `val_` metrics are 0.
        has_metric = trial.config["validation_fraction"] or not metric.startswith("val_")
        best = decisions.best_epoch(trial, rows, metric) if rows and has_metric else None
        if trial.best_epoch is not None and trial.best_value is not None:  # it has ended
            best = trial.best_epoch, trial.best_value
        if best and math.isnan(best[1]):
            best = None
        return TrialProgress(
            trial=trial,
            epochs=int(trial.config["epochs"]),
            rows=rows,
            last=rows[-1].metrics[metric] if rows and has_metric else None,
            best=best,
            attempt=next(reversed(self.ledger.attempts(trial.signature)), None),
        )


def duration(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
