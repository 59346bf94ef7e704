"""Asynchronous successive halving, against values worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.search.early_stopping import is_rung, is_stopped

# The values that have arrived at a rung, the trial's own first; whether the trial stops.
HAND_WORKED = [
    # Fewer than `factor` trials: all continue.
    ([0.1], False),
    ([0.1, 0.9], False),
    # 3 trials: the best one continues.
    ([0.1, 0.9, 0.5], True),
    ([0.9, 0.1, 0.5], False),
    ([0.8, 0.9, 0.5], True),
    # 5 trials: one continues; 6: two.
    ([0.8, 0.9, 0.1, 0.2, 0.3], True),
    ([0.8, 0.9, 0.1, 0.2, 0.3, 0.4], False),
    ([0.4, 0.9, 0.1, 0.2, 0.3, 0.8], True),
    # 9 trials: three continue.
    ([0.7, 0.9, 0.8, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], False),
    ([0.6, 0.9, 0.8, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7], True),
    # A trial equal to the last one that continues continues too.
    ([0.5, 0.5, 0.5], False),
    ([0.9, 0.9, 0.1], False),
    ([0.1, 0.1, 0.9], True),
    # NaN is worse than every number.
    ([math.nan, 0.1], False),
    ([math.nan, 0.1, 0.2], True),
    ([0.1, math.nan, math.nan], False),
    ([math.nan, math.nan, math.nan], True),
    ([0.1, math.nan, 0.2], True),
]


@pytest.mark.parametrize(("values", "stops"), HAND_WORKED)
def test_is_stopped_equals_values_worked_by_hand(values: list[float], stops: bool) -> None:
    settings: dict[str, Any] = {"epochs_done": 3, "first_rung": 1, "factor": 3}
    assert is_stopped(values[0], values, mode="max", **settings) is stops
    mirrored = [-value for value in values]
    assert is_stopped(mirrored[0], mirrored, mode="min", **settings) is stops
    backwards = values[::-1]  # their order has no effect
    assert is_stopped(values[0], backwards, mode="max", **settings) is stops


def test_trials_stop_at_rungs_only() -> None:
    rungs = [epochs for epochs in range(1, 40) if is_rung(epochs, 2, 3)]
    assert rungs == [2, 6, 18]
    assert [epochs for epochs in range(1, 30) if is_rung(epochs, 1, 4)] == [1, 4, 16]
    assert not any(is_rung(epochs, 0, 3) for epochs in range(1, 30))
    losing = [0.1, 0.8, 0.9]
    stops = [
        epochs
        for epochs in range(1, 20)
        if is_stopped(0.1, losing, epochs_done=epochs, first_rung=2, factor=3, mode="max")
    ]
    assert stops == [2, 6, 18]
    assert not is_stopped(0.1, losing, epochs_done=2, first_rung=0, factor=3, mode="max")


def test_is_stopped_compares_with_earlier_arrivals_only() -> None:
    """Eight trials reach a rung in turn; worked by hand for factor 2."""
    arrivals = [0.5, 0.4, 0.6, 0.3, 0.55, 0.7, 0.52, 0.6]
    stops = [
        is_stopped(value, arrivals[: n + 1], epochs_done=1, first_rung=1, factor=2, mode="max")
        for n, value in enumerate(arrivals)
    ]
    # Cutoffs: -, 0.5, 0.6, 0.5, 0.55, 0.55, 0.55, 0.55 (the 1st, 1st, 2nd, 2nd, 3rd, 3rd, 4th).
    assert stops == [False, True, False, True, False, False, True, False]
