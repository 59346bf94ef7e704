"""Asynchronous successive halving: which trial stops at a rung."""

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
    """Decide by asynchronous successive halving whether a trial ends here.

    At rung `first_rung * factor**k` a trial goes on when it is among the best 1 / factor of all
    that have arrived there, itself included; while fewer than `factor` have, everybody does. A
    value that is not a number ranks below all others.
    Source: Li et al., arXiv 1810.05934, algorithm 2, in the variant that stops instead of pausing.

    Args:
        value: the trial's, at this epoch.
        values: of all trials of the variant that had arrived at this epoch, this one among them.
        epochs_done: how many epochs this trial has behind it, 1 or more.
        first_rung: the first rung in epochs; 0: never stop.
        factor: of successive halving, 2 or more.
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
    """Return whether early stopping looks at a trial after this many epochs; never at rung 0."""
    rung = first_rung
    while 0 < rung < epochs_done:
        rung *= factor
    return rung == epochs_done
