"""Estimates the remaining time of a sweep from the epochs it has trained.

`trials` are those of the plan's variants.
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Mapping, Sequence

from orchestrator.ledger.records import ENDED, EpochRow, Trial
from orchestrator.plan.plan import Plan

Latest = Mapping[str, EpochRow]  # each trial's last epoch, by signature
Operations = Mapping[str, int]  # multiply-accumulates of one image forward, by variant


def left_s(
    plan: Plan, trials: Sequence[Trial], latest: Latest, operations: Operations
) -> float | None:
    """Return an estimate of the seconds until all trials have ended, None before the first epoch.

    A variant's epochs are expected to take as long as its epochs so far. A variant without epochs
    is estimated from the largest variant with epochs, in proportion to their operations. Early
    stopping is not taken into account.
    """
    epoch_s = epochs_s(plan, trials, latest, operations)
    if not epoch_s:
        return None
    total_s = sum(epochs_left(plan, v, trials, latest) * epoch_s[v] for v in plan.variants)
    running = sum(trial.status == "running" for trial in trials)
    return total_s / max(running, 1)


def epochs_s(
    plan: Plan,
    trials: Sequence[Trial],
    latest: Latest,
    operations: Operations,
    measured_s: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return estimated seconds of one epoch of every variant; empty while nothing is known.

    `measured_s` are those that `--measure` found, used for variants without epochs.
    """
    measured_s = measured_s or {}
    spans: dict[str, list[float]] = collections.defaultdict(list)
    for trial in trials:
        if trial.signature in latest:
            metrics = latest[trial.signature].metrics
            span_s = metrics["epoch_s"] + metrics["checkpoint_s"]
            if math.isfinite(span_s):
                spans[trial.variant].append(span_s)
    if not spans:
        return {variant: measured_s[variant] for variant in plan.variants if variant in measured_s}
    epoch_s = {variant: statistics.fmean(found) for variant, found in spans.items()}
    heaviest = max(epoch_s, key=lambda variant: operations.get(variant, 0))
    per_operation_s = epoch_s[heaviest] / max(operations.get(heaviest, 0), 1)
    for variant in plan.variants:
        by_operations_s = per_operation_s * operations.get(variant, 1)
        epoch_s.setdefault(variant, measured_s.get(variant, by_operations_s))
    return epoch_s


def epochs_left(plan: Plan, variant: str, trials: Sequence[Trial], latest: Latest) -> int:
    """Return how many epochs of a variant are left to train if no trial is stopped early."""
    epochs = plan.epochs(variant)
    finals = plan.final_seeds if plan.space.params_for(variant) else 0
    own = [trial for trial in trials if trial.variant == variant]
    planned = sum(trial.stage == "search" for trial in own)
    left = epochs * (max(plan.trials - planned, 0) + max(finals - (len(own) - planned), 0))
    for trial in own:
        if trial.status not in ENDED:
            row = latest.get(trial.signature)
            left += max(epochs - (row.epoch + 1 if row else 0), 0)
    return left
