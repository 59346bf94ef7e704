"""After a variant's search: its best configuration once more, with seeds of its own.

Which trials those are is a function of the ledger's rows, as every decision is.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

from orchestrator.ledger.records import EpochRow, Trial


def best_of(trials: Sequence[Trial], mode: str) -> Trial | None:
    """Return the best complete trial; of equal ones the first, None where there is none."""
    best: Trial | None = None
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.status != "complete" or trial.best_value is None:
            continue
        if best is None or is_better(trial.best_value, best.best_value or 0.0, mode):
            best = trial
    return best


def final_trials_of(trials: Sequence[Trial], variant: str, mode: str) -> list[Trial]:
    """Return the trials that stand for a variant: the finals of its best configuration.

    Finals of a configuration that a longer search has beaten since are left out, and so are those
    with a validation split where the latest are without, or the other way round: they are the same
    seeds again. Where nothing is searched they are the search's own. Ended or not, in the order of
    their numbers.
    """
    own = [trial for trial in trials if trial.variant == variant]
    searched = [trial for trial in own if trial.stage == "search"]
    if all(not trial.params for trial in searched):
        return searched
    best = best_of(searched, mode)
    if best is None:
        return []
    again = [t for t in own if t.stage == "final" and t.params == best.params]
    last = max(again, key=lambda trial: trial.planned_seq, default=best).config
    part = "validation_fraction"
    return [trial for trial in again if trial.config[part] == last[part]]


def _is_on_all(trial: Trial) -> bool:
    return (trial.config or {}).get("validation_fraction") == 0


def ranking_values(trials: Sequence[Trial]) -> dict[str, float]:
    """Return what each trial is worth by the validation split, by signature; the test has no say.

    A final one on the whole training part has no value of its own: its origin's counts. A recipe's
    trials that are such are worth the same: only the test could tell them apart.
    """
    own = {t.signature: t.best_value for t in trials}
    worth: dict[str, float] = {}
    for trial in trials:
        value = trial.best_value
        if value is None and trial.stage == "final":
            value = own.get(trial.origin or "")
        elif value is None and trial.status == "complete" and _is_on_all(trial):
            value = 0.0
        if value is not None:
            worth[trial.signature] = value
    return worth


def is_better(value: float, other: float, mode: str) -> bool:
    """Return whether a metric's value beats another; NaN never does."""
    if math.isnan(value):
        return False
    return math.isnan(other) or (value > other if mode == "max" else value < other)


def best_trial(trials: Sequence[Trial], mode: str) -> Trial | None:
    """Return the best trial by the validation split, None where none ended well.

    A variant's final trials stand for it where there are any; the test split has no say in it.

    Args:
        trials: of a sweep, or of one variant.
        mode: "max" or "min": which values of the metric are good.
    """
    sign = -1 if mode == "max" else 1
    values = ranking_values(trials)
    candidates: list[Trial] = []
    for variant in {trial.variant for trial in trials}:
        own = [t for t in trials if t.variant == variant and t.signature in values]
        # Those of a configuration that a longer search has beaten stand for nothing any more.
        again = [t for t in final_trials_of(own, variant, mode) if t.status == "complete"]
        candidates += again or [t for t in own if t.stage == "search"]

    def rank(trial: Trial) -> tuple[bool, float, int]:
        """One that was stopped early only where nothing else is; of equal ones the earlier."""
        return trial.status != "complete", sign * values[trial.signature], trial.planned_seq

    usable = [trial for trial in candidates if trial.status in ("complete", "stopped")]
    return min(usable, key=rank, default=None)


def top_k(trials: Sequence[Trial], keep: int, mode: str) -> set[str]:
    """Return the signatures of the best `keep` ended trials of every variant and stage.

    Final trials of a configuration that a longer search has beaten since are not among them.
    """
    values = ranking_values(trials)
    standing = {
        trial.signature
        for variant in {trial.variant for trial in trials}
        for trial in final_trials_of(trials, variant, mode)
    }
    by_variant = collections.defaultdict(list)
    for trial in trials:
        is_beaten = trial.stage == "final" and trial.signature not in standing
        is_usable = trial.status in ("complete", "stopped") and trial.signature in values
        if is_usable and not is_beaten:
            by_variant[trial.variant, trial.stage].append(trial)
    sign = -1 if mode == "max" else 1
    best = set()
    for own in by_variant.values():
        # Ties go to the earlier trial, so that the choice does not depend on when it is made.
        own.sort(key=lambda trial: (sign * values[trial.signature], trial.planned_seq))
        best |= {trial.signature for trial in own[:keep]}
    return best


def best_row(rows: Sequence[EpochRow], judge: str) -> EpochRow | None:
    """Return the row with the best value of a metric, the earliest of equal ones, or None."""
    mode = "min" if judge == "val_loss" else "max"
    best: EpochRow | None = None
    for row in rows:
        if best is None or is_better(row.metrics[judge], best.metrics[judge], mode):
            best = row
    return best
