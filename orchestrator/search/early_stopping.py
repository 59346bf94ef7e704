"""Early stopping by asynchronous successive halving: which trials stop at a rung.

Optuna's pruners are not used: on a study rebuilt from the ledger they decide differently, and they
reject trials that have finished.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.ledger.header import RecordedPlan
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.ranking import is_better
from orchestrator.ledger.records import EpochRow, Trial
from orchestrator.plan.plan import Plan


def decide(ledger: Ledger, plan: Plan | RecordedPlan, trial: Trial, row: EpochRow) -> bool | None:
    """Return whether early stopping ends a trial after an epoch; None if it does not compare there.

    It compares trials of a variant at rungs only, not after the last epoch, and never a trial that
    is evaluated on the test split. Rows never change, so the decision is always the same.
    """
    space, done = plan.space, row.epoch + 1
    is_exempt = done >= trial.config["epochs"] or plan.is_evaluated(trial)
    if is_exempt or not is_rung(done, space.first_rung_epochs, space.rung_factor):
        return None
    return is_stopped(
        row.metrics[space.metric],
        ledger.values_at(trial.variant, row.epoch, space.metric, up_to=row.seq),
        epochs_done=done,
        first_rung=space.first_rung_epochs,
        factor=space.rung_factor,
        mode=space.mode,
    )


def is_stopped(
    value: float,  # the trial's metric after this epoch
    values: Sequence[float],  # the same of all trials of the variant that reached it, this one too
    *,
    epochs_done: int,  # 1 or more
    first_rung: int,  # in epochs; 0 disables early stopping
    factor: int,  # the reduction factor, 2 or more
    mode: str,  # "max" or "min"
) -> bool:
    """Return whether asynchronous successive halving stops a trial after this epoch.

    Rungs are at `first_rung * factor**k` epochs. At a rung a trial continues if it is among the
    best 1 / factor of all trials that have reached the rung so far, itself included. While fewer
    than `factor` trials have reached it, every trial continues. NaN ranks below every number.
    The defaults are those of `SearchSpace`: no early stopping (`first_rung_epochs` 0), factor 3.
    Source: Li et al., arXiv 1810.05934, algorithm 2, in the variant that stops trials instead of
    pausing them.
    """
    if not is_rung(epochs_done, first_rung, factor) or len(values) < factor:
        return False
    if math.isnan(value):
        return True
    ordered = sorted((v for v in values if not math.isnan(v)), reverse=mode == "max")
    cutoff = ordered[min(len(values) // factor, len(ordered)) - 1]
    return is_better(cutoff, value, mode)


def is_rung(epochs_done: int, first_rung: int, factor: int) -> bool:
    """Return whether early stopping compares trials after this many epochs."""
    rung = first_rung
    while 0 < rung < epochs_done:
        rung *= factor
    return rung == epochs_done
