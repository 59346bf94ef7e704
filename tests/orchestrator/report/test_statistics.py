"""The report's statistics against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orchestrator.report.statistics import (
    FEWEST_POINTS,
    class_order,
    correlation,
    estimate,
    front,
    holm,
    most_confused,
    paired,
    welch,
    wilson,
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


def test_equal_seeds_have_no_interval_instead_of_one_without_width() -> None:
    """Two seeds with 12 of 30 images each do not show that the next seed has 12, too."""
    equal = estimate([0.4, 0.4])
    assert (equal.n, equal.mean, equal.sd, equal.low, equal.high) == (2, 0.4, 0.0, None, None)


@pytest.mark.parametrize(
    ("share", "images", "low", "high"),
    [  # scipy.stats.binomtest(hits, images).proportion_ci(method="wilson")
        (0.4, 30, 0.245906, 0.576796),
        (0.0, 30, 0.0, 0.113513),
        (1.0, 30, 0.886487, 1.0),
        (0.9, 10_000, 0.893966, 0.905727),
    ],
)
def test_the_interval_over_test_images_is_wilsons(
    share: float, images: int, low: float, high: float
) -> None:
    assert wilson(share, images) == pytest.approx((low, high), abs=2e-6)


def test_the_interval_of_a_difference_is_paired_over_the_images() -> None:
    """Agresti and Min: 8 images speak for the first, 2 for the second, 20 for neither.

    (8 - 2) / 32 = 0.1875; the half width is 1.96 / 32 * sqrt(11 - 6 ** 2 / 32).
    """
    first = np.array([1] * 8 + [0] * 2 + [1] * 20)
    second = np.array([0] * 8 + [1] * 2 + [1] * 20)
    half = 1.959964 / 32 * math.sqrt(11 - 36 / 32)
    assert paired(first, second) == pytest.approx((0.1875 - half, 0.1875 + half), abs=1e-6)
    # Of the same accuracies, but wrong on the same images where possible: a narrower interval.
    nested = paired(first, np.array([0] * 6 + [1] * 2 + [0] * 2 + [1] * 20))
    assert sum(nested) / 2 == pytest.approx(0.1875)
    assert nested[1] - nested[0] < 1.6 * half


def test_models_that_are_right_on_the_same_images_may_still_differ() -> None:
    same = np.ones(30)
    half = 1.959964 / 32
    assert paired(same, same) == pytest.approx((-half, half), abs=1e-6)


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


def test_correlation_needs_enough_points_that_vary() -> None:
    """Nine points are too few: by chance alone, one in twenty such samples has |r| above 0.66."""
    x = list(range(FEWEST_POINTS))
    assert FEWEST_POINTS == 10
    assert correlation(x[:9], x[:9]) is None
    assert correlation([1] * 10, x) is None
    assert correlation(x, x) == pytest.approx((1.0, 1.0))
    # Monotone, not linear: 0 to 8 and 27.
    pearson, spearman = correlation(x, [*x[:9], 27]) or (0, 0)
    assert (pearson, spearman) == pytest.approx((163.5 / math.sqrt(82.5 * 536.1), 1.0))


def test_the_fewest_points_of_a_correlation_are_those_that_its_reason_names() -> None:
    """Critical values of Pearson's coefficient at 5 %, from Student's t with n - 2 degrees."""
    from scipy import stats

    def critical(n: int) -> float:
        t = float(stats.t.ppf(0.975, n - 2))
        return t / math.sqrt(n - 2 + t**2)

    assert [round(critical(n), 3) for n in (3, 5, 10)] == [0.997, 0.878, 0.632]


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
