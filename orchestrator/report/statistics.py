"""The report's statistics: intervals, significance, correlation, fronts, and the order of classes.

Pure functions of values. SciPy is imported inside the functions: its import takes half a second,
and a small sweep may need none of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
# Where there is no correlation, one sample in 20 has a Pearson coefficient beyond ±0.997 with 3
# points, ±0.88 with 5 and ±0.63 with 10. So with fewer points than this, no coefficient is given.
FEWEST_POINTS = 10
# Optimal leaf ordering takes cubic time in the number of classes: 1 s for a thousand.
_MOST_CLASSES_ORDERED = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds. Deviation and interval are None for fewer than two seeds.

    The interval is also None if all seeds are equal: on few test images that is common by chance,
    and an interval without width would take it for certainty.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """First minus second mean, with Welch's confidence interval and two-sided p value."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def is_significant(self) -> bool:
        """Whether the confidence interval excludes zero."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean, sample deviation and Student's t interval of the values that are not NaN."""
    kept = [value for value in values if not math.isnan(value)]
    if not kept:
        return Estimate(0, None, None, None, None)
    mean = float(np.mean(kept))
    if len(kept) < 2:
        return Estimate(1, mean, None, None, None)
    from scipy import stats

    sd = float(np.std(kept, ddof=1))
    if not sd:
        return Estimate(len(kept), mean, sd, None, None)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(kept) - 1)) * sd / math.sqrt(len(kept))
    return Estimate(len(kept), mean, sd, mean - half, mean + half)


def welch(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Return the difference of two means by Welch's t test, None with fewer than two values each.

    It is also None if neither sample varies: on few test images equal accuracies are common by
    chance, and Welch's test would take them for certainty.
    """
    if min(len(first), len(second)) < 2 or (np.ptp(first) == 0 and np.ptp(second) == 0):
        return None
    from scipy import stats

    mean = float(np.mean(first) - np.mean(second))
    result: Any = stats.ttest_ind(first, second, equal_var=False)
    low, high = result.confidence_interval(CONFIDENCE)
    return Difference(mean, float(low), float(high), float(result.pvalue))


def wilson(share: float, images: int) -> tuple[float, float]:
    """Return Wilson's interval of an accuracy for other samples of as many test images.

    Of a mean over seeds, on the same images, it is too wide rather than too narrow.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    root = math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    half = z * root / (1 + z**2 / images)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def paired(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the interval of a difference of accuracies for other samples of test images.

    `first` and `second` are (n,), the share of each one's seeds that are right on each image. Two
    images more, one of them for and one against the first with half weight each, keep the interval
    from having no width where all images agree.

    Source: Agresti and Min, Simple improved confidence intervals for comparing matched
    proportions, 2005; here for means over seeds.
    """
    differences = np.subtract(first, second, dtype=float)
    n = len(differences) + 2
    mean = float(differences.sum()) / n
    variance = (float((differences**2).sum()) + 1) / n - mean**2
    half = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(variance / n)
    return max(mean - half, -1.0), min(mean + half, 1.0)


def holm(p_values: Sequence[float], level: float = 1 - CONFIDENCE) -> list[bool]:
    """Return which null hypotheses are rejected when all are tested together.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    rejected = [False] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values)):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Return Pearson's and Spearman's coefficient, None if they have no meaning.

    There are too few points, see `FEWEST_POINTS`, or one of the two is constant.
    """
    if len(x) < FEWEST_POINTS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    from scipy import stats

    pearson: Any = stats.pearsonr(x, y)
    spearman: Any = stats.spearmanr(x, y)
    return float(pearson.statistic), float(spearman.statistic)


def front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Return the indices of the points on the Pareto front, cheapest first.

    No other point is cheaper and at least as good, or as cheap and better.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -values[i]))
    kept: list[int] = []
    for index in order:
        if not kept or values[index] > values[kept[-1]]:
            kept.append(index)
    return kept


def class_order(confusion: np.ndarray) -> list[int]:
    """Return the classes in an order in which often confused ones are next to each other.

    Average-linkage clustering of the symmetrized shares of confusion, with optimal leaf ordering.
    `confusion` are counts, (k, k): rows are true classes, columns predicted ones.
    """
    k = len(confusion)
    shares = row_shares(confusion)
    similarity = (shares + shares.T) / 2
    np.fill_diagonal(similarity, 0)
    top = similarity.max(initial=0)
    if k < 3 or top == 0:  # every prediction is correct
        return list(range(k))
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    distance = 1 - similarity / top
    np.fill_diagonal(distance, 0)
    condensed, is_ordered = squareform(distance, checks=False), k <= _MOST_CLASSES_ORDERED
    tree = hierarchy.linkage(condensed, method="average", optimal_ordering=is_ordered)
    return [int(leaf) for leaf in hierarchy.leaves_list(tree)]


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Return each row divided by its sum, (k, k); a class without images has only zeros."""
    shares: np.ndarray = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    return shares


def most_confused(confusion: np.ndarray, limit: int) -> list[tuple[int, int, int, int]]:
    """Return at most `limit` pairs of classes with the most confused images, most first.

    Of each pair: class a, class b, images of a predicted as b, images of b predicted as a.
    """
    both = np.triu(confusion + confusion.T, 1)
    flat = np.argsort(-both, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(index), len(confusion)) for index in flat]
    return [(a, b, int(confusion[a, b]), int(confusion[b, a])) for a, b in pairs if both[a, b] > 0]
