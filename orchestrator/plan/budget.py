"""The limits of a sweep, `--budget` and `--max-device-hours`, and what still fits into them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.clock import Clock
from orchestrator.ledger.ledger import Ledger
from orchestrator.plan import forecast, machines
from orchestrator.plan.options import SweepConfig
from orchestrator.plan.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The limits of a sweep: no trial starts that is not expected to end within them."""

    until_s: float | None = None  # Unix time by which trials must end; None: no limit
    device_s: float | None = None  # device-seconds of all trials together; None: no limit
    # Devices that one trial counts as, by variant; 1 for a variant that is not given.
    shares: Mapping[str, float] = field(default_factory=dict)


def shares(plan: Plan, gpus_per_trial: float | None) -> dict[str, float]:
    """Return how many devices a trial of each variant counts as.

    It is the number of its workers times the share of a GPU that each requests; a worker that
    requests no GPU counts as one device.
    """
    workers = machines.workers_per_trial(plan)
    shapes = machines.shapes(plan, has_gpus=True, gpus_per_trial=gpus_per_trial)
    return {variant: workers * (gpus or 1) for variant, (_, gpus) in shapes.items()}


def budget_from_options(
    config: SweepConfig, ledger: Ledger, plan: Plan, now_s: float
) -> Budget | None:
    """Return the command line's limits, `--budget` counted from `now_s`; None if it sets none."""
    hours = config.max_device_hours
    if config.budget_s is None and hours is None:
        return None
    return Budget(
        until_s=None if config.budget_s is None else now_s + config.budget_s,
        device_s=None if hours is None else 3600 * hours,
        shares=shares(plan, ledger.header().options.get("gpus_per_trial")),
    )


def allowance(
    budget: Budget,
    ledger: Ledger,
    plan: Plan,
    multiply_accumulates: Mapping[str, int],
    measured_s: Mapping[str, float] | None = None,
    clock: Clock | None = None,
) -> Callable[[str, int], bool]:
    """Return a function that tells whether more epochs of a variant are expected to fit a budget.

    While no epoch of any variant has been timed, it tells only whether the limits are reached.
    `measured_s` are seconds of one epoch, by variant, on machines like those that train.
    """
    clock = clock or Clock()

    @functools.lru_cache(maxsize=1)  # asked often between two changes, and on Tune's event loop
    def known(seq: int) -> tuple[dict[str, float], float]:
        trials = [trial for trial in ledger.trials() if trial.variant in plan.variants]
        epoch_s = forecast.epochs_s(
            plan, trials, ledger.latest_epochs(), multiply_accumulates, measured_s
        )
        taken_s = _taken_s(budget, ledger, epoch_s) if budget.device_s is not None else 0.0
        return epoch_s, taken_s

    def allows(variant: str, epochs: int) -> bool:
        epoch_s, taken_s = known(ledger.seq)
        needed_s = epochs * epoch_s.get(variant, 0.0)
        if budget.until_s is not None and clock.now_s() + needed_s >= budget.until_s:
            return False
        if budget.device_s is None:
            return True
        return taken_s + budget.shares.get(variant, 1.0) * needed_s < budget.device_s

    return allows


def _taken_s(budget: Budget, ledger: Ledger, epoch_s: Mapping[str, float]) -> float:
    """Return the device-seconds used so far plus those that running trials still need."""
    trials = {trial.signature: trial for trial in ledger.trials()}
    taken_s = 0.0
    for attempt in ledger.attempts():
        trial = trials[attempt.signature]
        # An attempt that ended normally has its own end time, so its rows are not needed.
        rows = ledger.epochs(trial.signature) if attempt.outcome in (None, "lost") else []
        began_s, ended_s = attempt.span_s(rows)
        span_s = ended_s - began_s
        if attempt.outcome is None:
            left = int(trial.config["epochs"]) - (rows[-1].epoch + 1 if rows else 0)
            span_s += left * epoch_s.get(trial.variant, 0.0)
        taken_s += budget.shares.get(trial.variant, 1.0) * span_s
    return taken_s
