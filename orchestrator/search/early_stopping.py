"""Early stopping by asynchronous successive halving: which trials stop at a rung.

Optuna's pruners are not used: on a study rebuilt from the ledger they decide differently, and they
reject trials that have finished.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.ledger.ranking import is_better


def is_stopped(
    value: float,
    values: Sequence[float],
    *,
    epochs_done: int,
    first_rung: int,
    factor: int,
    mode: str,
) -> bool:
    """Return whether asynchronous successive halving stops a trial after this epoch.

    Rungs are at `first_rung * factor**k` epochs. At a rung a trial continues if it is among the
    best 1 / factor of all trials that have reached the rung so far, itself included. While fewer
    than `factor` trials have reached it, every trial continues. NaN ranks below every number.
    The defaults are those of `SearchSpace`: no early stopping (`first_rung_epochs` 0), factor 3.
    Source: Li et al., arXiv 1810.05934, algorithm 2, in the variant that stops trials instead of
    pausing them.

    Args:
        value: the trial's metric after this epoch.
        values: that of all trials of the variant that have reached this epoch, itself included.
        epochs_done: how many epochs the trial has trained, 1 or more.
        first_rung: the first rung in epochs; 0 disables early stopping.
        factor: the reduction factor, 2 or more.
        mode: "max" or "min".
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
