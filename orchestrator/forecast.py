"""How long a sweep will still take, from its epochs so far, and whether that is allowed."""

from __future__ import annotations

import collections
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.ledger import ENDED, EpochRow, Ledger, Trial
from orchestrator.plan import Plan


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
        total_s += _epochs_left(plan, variant, trials, latest) * epoch_s[variant]
    running = sum(trial.status == "running" for trial in trials)
    return total_s / max(running, 1)


def epochs_s(
    plan: Plan,
    trials: Sequence[Trial],
    latest: Mapping[str, EpochRow],
    multiply_accumulates: Mapping[str, int],
) -> dict[str, float]:
    """Estimate the seconds of one epoch of every variant; empty before any epoch has ended.

    Arguments as of `left_s`.
    """
    spans: dict[str, list[float]] = collections.defaultdict(list)
    for trial in trials:
        if trial.signature in latest:
            metrics = latest[trial.signature].metrics
            span_s = metrics["epoch_s"] + metrics["checkpoint_s"]
            if math.isfinite(span_s):
                spans[trial.variant].append(span_s)
    if not spans:
        return {}
    epoch_s = {variant: statistics.fmean(found) for variant, found in spans.items()}
    heaviest = max(epoch_s, key=lambda variant: multiply_accumulates.get(variant, 0))
    per_operation_s = epoch_s[heaviest] / max(multiply_accumulates.get(heaviest, 0), 1)
    return {
        variant: epoch_s.get(variant, per_operation_s * multiply_accumulates.get(variant, 1))
        for variant in plan.variants
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a sweep may take; nothing is started that is not expected to end within it.

    Attributes:
        until_s: time of day by which trials end; None: no end.
        device_s: seconds that all trials may take of their devices, a share of one counting as
            such and a trial without one as its workers; None: no limit.
        shares: devices that a trial takes, by variant.
    """

    until_s: float | None = None
    device_s: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)

    def allows(
        self,
        ledger: Ledger,
        plan: Plan,
        multiply_accumulates: Mapping[str, int],
        variant: str,
        epochs: int,
    ) -> bool:
        """Return whether so many more epochs of a variant are expected to fit.

        While nothing is known of how long epochs take, whatever can begin at all may.
        """
        trials = [trial for trial in ledger.trials() if trial.variant in plan.variants]
        latest = ledger.latest_epochs()
        epoch_s = epochs_s(plan, trials, latest, multiply_accumulates)
        needed_s = epochs * epoch_s.get(variant, 0.0)
        now_s = time.time()
        if self.until_s is not None and now_s + needed_s >= self.until_s:
            return False
        if self.device_s is None:
            return True
        shares = {trial.signature: self.shares.get(trial.variant, 1.0) for trial in trials}
        used_s = sum(
            shares.get(attempt.signature, 1.0) * ((attempt.ended_s or now_s) - attempt.started_s)
            for attempt in ledger.attempts()
        )
        # What runs takes its part as well before it ends.
        under_way = {a.signature for a in ledger.attempts() if a.outcome is None}
        for trial in trials:
            if trial.signature in under_way:
                row = latest.get(trial.signature)
                left = int(trial.config["epochs"]) - (row.epoch + 1 if row else 0)
                used_s += shares[trial.signature] * left * epoch_s.get(trial.variant, 0.0)
        return used_s + self.shares.get(variant, 1.0) * needed_s < self.device_s


def _epochs_left(
    plan: Plan, variant: str, trials: Sequence[Trial], latest: Mapping[str, EpochRow]
) -> int:
    epochs = plan.epochs(variant)
    finals = plan.final_seeds if plan.space.params_for(variant) else 0
    own = [trial for trial in trials if trial.variant == variant]
    left = max(plan.trials + finals - len(own), 0) * epochs
    for trial in own:
        if trial.status not in ENDED:
            row = latest.get(trial.signature)
            left += max(epochs - (row.epoch + 1 if row else 0), 0)
    return left
