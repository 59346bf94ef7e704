"""Which trials are the best: the only place that orders trials by their results.

Every function depends on the ledger's rows only, as every decision does. The test split is never
taken into account. Of equal trials the one that was planned first is the better one, so that the
choice does not depend on when it is made.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

from orchestrator.ledger.records import EpochRow, Trial


def best_of(trials: Sequence[Trial], mode: str) -> Trial | None:
    """Return the variant's best complete trial by its own value, None if none has a value."""
    usable = [t for t in trials if t.status == "complete" and t.best_value is not None]
    return min(usable, key=lambda trial: _order(trial, trial.best_value, mode), default=None)


def final_trials_of(trials: Sequence[Trial], variant: str, mode: str) -> list[Trial]:
    """Return the trials that represent a variant: the final trials of its best configuration.

    Final trials of a configuration that a longer search has surpassed are left out. If some of the
    rest have a validation split and others have none, only those like the latest remain: the
    others repeat the same seeds. A variant with nothing to search is represented by its search
    trials. The trials are in the order of their numbers, ended or not.
    """
    own = [trial for trial in trials if trial.variant == variant]
    searched = [trial for trial in own if trial.stage == "search"]
    if all(not trial.params for trial in searched):
        return searched
    best = best_of(searched, mode)
    if best is None:
        return []
    repeats = [t for t in own if t.stage == "final" and t.params == best.params]
    latest = max(repeats, key=lambda trial: trial.planned_seq, default=best)
    split = "validation_fraction"
    return [trial for trial in repeats if trial.config[split] == latest.config[split]]


def ranking_values(trials: Sequence[Trial]) -> dict[str, float]:
    """Return the value by which each trial is ranked, by signature; some trials have none.

    It is the best value of the trial on the validation split. A final trial without a validation
    split has the value of its origin. Complete search trials without a validation split, as in a
    recipe trained on all training images, are equal: only the test split could distinguish them.
    """
    own = {trial.signature: trial.best_value for trial in trials}
    values: dict[str, float] = {}
    for trial in trials:
        value = trial.best_value
        if value is None and trial.stage == "final":
            value = own.get(trial.origin or "")
        elif value is None and trial.status == "complete":
            value = 0.0 if trial.config.get("validation_fraction") == 0 else None
        if value is not None:
            values[trial.signature] = value
    return values


def is_better(value: float, other: float, mode: str) -> bool:
    """Return whether a metric's value beats another; NaN never does."""
    if math.isnan(value):
        return False
    return math.isnan(other) or (value > other if mode == "max" else value < other)


def best_trial(trials: Sequence[Trial], mode: str) -> Trial | None:
    """Return the best trial of a sweep or variant, None if no trial is complete or stopped.

    A variant with complete final trials is represented by those. A trial that was stopped early is
    chosen only if no trial is complete.
    """
    values = ranking_values(trials)
    candidates: list[Trial] = []
    for variant in {trial.variant for trial in trials}:
        own = [t for t in trials if t.variant == variant and t.signature in values]
        finals = [t for t in final_trials_of(own, variant, mode) if t.status == "complete"]
        candidates += finals or [t for t in own if t.stage == "search"]
    usable = [trial for trial in candidates if trial.status in ("complete", "stopped")]
    complete = [trial for trial in usable if trial.status == "complete"]
    return min(complete or usable, key=lambda t: _order(t, values[t.signature], mode), default=None)


def top_k(trials: Sequence[Trial], keep: int, mode: str) -> set[str]:
    """Return the signatures of the best `keep` ended trials of every variant and stage.

    Final trials of a configuration that a longer search has surpassed are not among them.
    """
    values = ranking_values(trials)
    current = {
        trial.signature
        for variant in {trial.variant for trial in trials}
        for trial in final_trials_of(trials, variant, mode)
    }
    groups = collections.defaultdict(list)
    for trial in sorted(trials, key=lambda each: _order(each, values.get(each.signature), mode)):
        is_surpassed = trial.stage == "final" and trial.signature not in current
        is_usable = trial.status in ("complete", "stopped") and trial.signature in values
        if is_usable and not is_surpassed:
            groups[trial.variant, trial.stage].append(trial.signature)
    return {signature for best_first in groups.values() for signature in best_first[:keep]}


def best_row(rows: Sequence[EpochRow], metric: str) -> EpochRow | None:
    """Return the row with the best value of a metric, the earliest of equal ones, or None."""
    mode = "min" if metric == "val_loss" else "max"
    best: EpochRow | None = None
    for row in rows:
        if best is None or is_better(row.metrics[metric], best.metrics[metric], mode):
            best = row
    return best


def _order(trial: Trial, value: float | None, mode: str) -> tuple[float, int]:
    """Return the sort key of a trial with a value: the best first, NaN last."""
    if value is None or math.isnan(value):
        return math.inf, trial.planned_seq
    return -value if mode == "max" else value, trial.planned_seq
