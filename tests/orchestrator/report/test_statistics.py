"""The report's statistics against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orchestrator.report.statistics import (
    class_order,
    correlation,
    estimate,
    front,
    holm,
    most_confused,
    welch,
)


def test_the_interval_over_seeds_is_that_of_students_t() -> None:
    """For 1, 2, 3: mean 2, deviation 1, and t(2) = 4.3027 times 1 / sqrt(3) to each side."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3))
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3))


def test_one_seed_has_no_interval_and_no_seed_has_no_mean() -> None:
    one = estimate([0.5, math.nan])
    assert (one.n, one.mean, one.sd, one.low, one.high) == (1, 0.5, None, None, None)
    assert estimate([]).mean is None


def test_a_difference_is_significant_if_its_interval_excludes_zero() -> None:
    """Welch of (1, 2, 3) and (7, 8, 9): equal variances, so 4 degrees, t = 2.7764."""
    found = welch([1.0, 2.0, 3.0], [7.0, 8.0, 9.0])
    assert found is not None
    half = 2.776445 * math.sqrt(2 / 3)
    assert (found.mean, found.low, found.high) == pytest.approx((-6, -6 - half, -6 + half))
    assert found.is_significant
    near = welch([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert near is not None
    assert not near.is_significant


def test_a_single_seed_has_no_difference() -> None:
    assert welch([1.0], [2.0, 3.0]) is None


def test_two_samples_that_do_not_vary_have_no_difference() -> None:
    """Two seeds on 359 images are often equal by chance, which does not predict the next seed."""
    assert welch([0.975, 0.975], [0.978, 0.978]) is None
    assert welch([0.5, 0.5], [0.5, 0.5]) is None


def test_holm_stops_at_the_first_hypothesis_that_is_not_rejected() -> None:
    """Sorted: 0.01 <= 0.05 / 3 is rejected; 0.03 > 0.05 / 2 is not, so neither is 0.04."""
    assert holm([0.04, 0.01, 0.03]) == [False, True, False]
    assert holm([]) == []


def test_correlation_needs_three_points_that_vary() -> None:
    assert correlation([1, 2], [1, 2]) is None
    assert correlation([1, 1, 1], [1, 2, 3]) is None
    assert correlation([1, 2, 3], [1, 2, 3]) == pytest.approx((1.0, 1.0))
    # Monotone, not linear.
    pearson, spearman = correlation([1, 2, 3], [1, 2, 9]) or (0, 0)
    assert (pearson, spearman) == pytest.approx((4 / math.sqrt(19), 1.0))


def test_the_front_has_the_points_that_no_other_dominates() -> None:
    """The second costs as much as the first and is worse; the fourth costs more for less."""
    assert front([1, 1, 2, 3, 4], [0.5, 0.4, 0.6, 0.6, 0.9]) == [0, 2, 4]
    assert front([], []) == []


def test_classes_that_are_confused_are_next_to_each_other() -> None:
    confusion = np.diag([90] * 6)
    for a, b in ((0, 3), (1, 4), (2, 5)):
        confusion[a, b] = confusion[b, a] = 10
    order = class_order(confusion)
    assert sorted(order) == list(range(6))
    for a, b in ((0, 3), (1, 4), (2, 5)):
        assert abs(order.index(a) - order.index(b)) == 1


def test_a_matrix_without_errors_or_with_two_classes_keeps_its_order() -> None:
    assert class_order(np.diag([5, 5, 5])) == [0, 1, 2]
    assert class_order(np.array([[1, 2], [3, 4]])) == [0, 1]
    assert class_order(np.zeros((4, 4), int)) == [0, 1, 2, 3]


def test_the_most_confused_pairs_count_both_directions() -> None:
    confusion = np.array([[9, 1, 4], [2, 9, 0], [3, 0, 9]])
    assert most_confused(confusion, 5) == [(0, 2, 4, 3), (0, 1, 1, 2)]
    assert most_confused(confusion, 1) == [(0, 2, 4, 3)]
