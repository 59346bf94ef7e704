"""The report's arithmetic: intervals over seeds, who beats whom, fronts, and the order of classes.

Values in, values out; it knows neither the ledger nor the page. SciPy is imported where it is
needed: half a second and more of a small sweep's end, which has none of this to compute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
# Ordering leaves optimally takes time in the cube of the classes: 1 s for a thousand.
_MOST_CLASSES_ORDERED = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds. `sd` and the interval are None where there are fewer than two."""

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """First minus second, with Welch's interval and two-sided p value."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def is_resolved(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean, sample standard deviation and Student's t interval of the mean.

    Args:
        values: one for each seed; NaN are left out.
    """
    kept = [value for value in values if not math.isnan(value)]
    if not kept:
        return Estimate(0, None, None, None, None)
    mean = float(np.mean(kept))
    if len(kept) < 2:
        return Estimate(1, mean, None, None, None)
    from scipy import stats

    sd = float(np.std(kept, ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(kept) - 1)) * sd / math.sqrt(len(kept))
    return Estimate(len(kept), mean, sd, mean - half, mean + half)


def welch(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Return the difference of two means by Welch's t test, None with fewer than 2 values each.

    None too where neither side varies at all: accuracies on few images tie by chance, which is no
    certainty.
    """
    if min(len(first), len(second)) < 2 or (np.ptp(first) == 0 and np.ptp(second) == 0):
        return None
    from scipy import stats

    mean = float(np.mean(first) - np.mean(second))
    result: Any = stats.ttest_ind(first, second, equal_var=False)
    low, high = result.confidence_interval(CONFIDENCE)
    return Difference(mean, float(low), float(high), float(result.pvalue))


def holm(p_values: Sequence[float], level: float = 1 - CONFIDENCE) -> list[bool]:
    """Return which hypotheses fall when all are tested together.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    falls = [False] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values)):
        if p_values[index] > level / (len(p_values) - rank):
            break
        falls[index] = True
    return falls


def correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Return Pearson's and Spearman's coefficient; None where they say nothing.

    Two points lie on a line whatever they are, and a constant has no correlation.
    """
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    from scipy import stats

    pearson: Any = stats.pearsonr(x, y)
    spearman: Any = stats.spearmanr(x, y)
    return float(pearson.statistic), float(spearman.statistic)


def front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Return which points no other beats: cheaper and at least as good, or as cheap and better.

    Returns:
        Their positions, cheapest first.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -values[i]))
    kept: list[int] = []
    for index in order:
        if not kept or values[index] > values[kept[-1]]:
            kept.append(index)
    return kept


def class_order(confusion: np.ndarray) -> list[int]:
    """Return the classes so that those which are mistaken for one another stand together.

    Average-linkage clustering of the symmetrised shares of confusion, leaves in optimal order.

    Args:
        confusion: counts, row = true class, column = predicted; (k, k).
    """
    k = len(confusion)
    if k < 3:
        return list(range(k))
    shares = row_shares(confusion)
    alike = (shares + shares.T) / 2
    np.fill_diagonal(alike, 0)
    top = alike.max()
    if top == 0:  # no error at all
        return list(range(k))
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    distance = 1 - alike / top
    np.fill_diagonal(distance, 0)
    tree = hierarchy.linkage(
        squareform(distance, checks=False),
        method="average",
        optimal_ordering=k <= _MOST_CLASSES_ORDERED,
    )
    return [int(leaf) for leaf in hierarchy.leaves_list(tree)]


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Return each row as shares of its sum; a class without images is all zeros. (k, k)."""
    sums = confusion.sum(axis=1, keepdims=True)
    shares: np.ndarray = confusion / np.maximum(sums, 1)
    return shares


def most_confused(confusion: np.ndarray, limit: int) -> list[tuple[int, int, int, int]]:
    """Return the pairs of classes mistaken for one another most often.

    Args:
        confusion: counts, (k, k).
        limit: at most so many.

    Returns:
        Of each pair its classes a and b, the images of a taken for b, and those of b for a;
        the most images first.
    """
    both = np.triu(confusion + confusion.T, 1)
    flat = np.argsort(-both, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(index), len(confusion)) for index in flat]
    return [(a, b, int(confusion[a, b]), int(confusion[b, a])) for a, b in pairs if both[a, b] > 0]
