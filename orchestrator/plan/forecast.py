"""How long a sweep will still take, from what its epochs have taken so far."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Mapping, Sequence

from orchestrator.ledger.records import ENDED, EpochRow, Trial
from orchestrator.plan.plan import Plan


def left_s(
    plan: Plan,
    trials: Sequence[Trial],
    latest: Mapping[str, EpochRow],
    multiply_accumulates: Mapping[str, int],
) -> float | None:
    """Estimate the seconds until every planned trial has ended, None before any epoch has.

    Each variant's epochs take as long as they did; one that has none yet takes as much longer than
    the heaviest that has as it computes more. Trials that will be stopped early are not foreseen.

    Args:
        plan: what is to be done.
        trials: of the plan's variants.
        latest: each trial's last epoch, by signature.
        multiply_accumulates: of one image forward, by variant.
    """
    epoch_s = epochs_s(plan, trials, latest, multiply_accumulates)
    if not epoch_s:
        return None
    total_s = 0.0
    for variant in plan.variants:
        total_s += epochs_left(plan, variant, trials, latest) * epoch_s[variant]
    running = sum(trial.status == "running" for trial in trials)
    return total_s / max(running, 1)


def epochs_s(
    plan: Plan,
    trials: Sequence[Trial],
    latest: Mapping[str, EpochRow],
    multiply_accumulates: Mapping[str, int],
    measured_s: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Estimate the seconds of one epoch of every variant; empty while nothing is known.

    Arguments as of `left_s`; `measured_s` are those of one epoch by variant, as `--measure` found
    them, which count for variants without an epoch.
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
    heaviest = max(epoch_s, key=lambda variant: multiply_accumulates.get(variant, 0))
    per_operation_s = epoch_s[heaviest] / max(multiply_accumulates.get(heaviest, 0), 1)
    by_operations_s = {
        variant: per_operation_s * multiply_accumulates.get(variant, 1) for variant in plan.variants
    }
    return {v: epoch_s.get(v, measured_s.get(v, by_operations_s[v])) for v in plan.variants}


def epochs_left(
    plan: Plan, variant: str, trials: Sequence[Trial], latest: Mapping[str, EpochRow]
) -> int:
    """Return how many epochs of a variant are still to be trained, if no trial is stopped early.

    Arguments as of `left_s`.
    """
    epochs = plan.epochs(variant)
    finals = plan.final_seeds if plan.space.params_for(variant) else 0
    own = [trial for trial in trials if trial.variant == variant]
    planned = sum(trial.stage == "search" for trial in own)
    left = max(plan.trials - planned, 0) + max(finals - (len(own) - planned), 0)
    left *= epochs
    for trial in own:
        if trial.status not in ENDED:
            row = latest.get(trial.signature)
            left += max(epochs - (row.epoch + 1 if row else 0), 0)
    return left
