"""Metrics of a classifier from its logits, with numpy and scikit-learn.

Legend: n images, k classes. Fractions are 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

CALIBRATION_BINS = 15  # Guo et al. 2017, section 3

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One metric per class, its mean over the classes, and its mean weighted by support."""

    per_class: list[float]
    macro: float
    weighted: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Images in 15 equal bins of the confidence of their prediction; 0.0 where empty."""

    count: list[int]
    confidence: list[float]  # mean of the bin
    accuracy: list[float]


def probabilities(logits: Floats) -> Floats:
    """Return the softmax of each row, (n, k)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def cross_entropy(logits: Floats, labels: Ints) -> float:
    """Return the mean cross-entropy in nats per image."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-logs[np.arange(len(labels)), labels].mean())


def ranking(logits: Floats, depth: int = 5) -> Ints:
    """Return the most likely classes, best first, (n, min(depth, k)).

    Of equal logits, which are frequent in bfloat16, the lower class number comes first. All metrics
    use this order: scikit-learn's top-k score breaks ties differently, so top-5 could fall below
    top-1.
    """
    order: Ints = np.argsort(-logits, axis=1, kind="stable")[:, :depth]
    return order


def class_figures(
    labels: Ints, predicted: Ints, num_classes: int
) -> tuple[ClassFigures, ClassFigures, ClassFigures, list[int]]:
    """Return precision, recall, F1, and the number of images per class.

    Over all k classes, by scikit-learn; a division by zero counts as 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    def scores(average: str | None) -> Any:
        return precision_recall_fscore_support(
            labels, predicted, labels=range(num_classes), average=average, zero_division=0
        )

    each, macro, weighted = scores(None), scores("macro"), scores("weighted")
    precision, recall, f1 = (
        ClassFigures(each[part].tolist(), float(macro[part]), float(weighted[part]))
        for part in range(3)
    )
    return precision, recall, f1, each[3].tolist()


def confusion(labels: Ints, predicted: Ints, num_classes: int) -> list[list[int]]:
    """Return the confusion matrix (k, k): row true class, column predicted class."""
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(labels, predicted, labels=range(num_classes))
    return matrix.tolist()  # type: ignore[no-any-return]


def calibration(confidence: Floats, hits: npt.NDArray[np.bool_]) -> tuple[Calibration, float]:
    """Return the reliability diagram and the expected calibration error.

    The error is the mean over all images of |accuracy - confidence| of their bin. `confidence` (n,)
    is the probability of the predicted class, `hits` (n,) whether it was right; bin m holds the
    confidences in ((m - 1) / 15, m / 15].

    Source: Guo et al., arXiv 1706.04599, On Calibration of Modern Neural Networks, equations 2, 3.
    """
    edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    bins = np.digitize(confidence, edges, right=True)
    count, sure, right = (
        np.bincount(bins, weights=weights, minlength=CALIBRATION_BINS)
        for weights in (None, confidence, hits.astype(float))
    )
    images = np.maximum(count, 1)
    diagram = Calibration(count.tolist(), (sure / images).tolist(), (right / images).tolist())
    return diagram, float(np.abs(right - sure).sum() / max(len(confidence), 1))


def superclass_top1(labels: Ints, predicted: Ints, fine_to_coarse: tuple[int, ...]) -> float | None:
    """Return the share of predictions of the right superclass; None without superclasses.

    `fine_to_coarse` is the superclass of each class, as in `dataset.Manifest`.
    """
    if not fine_to_coarse:
        return None
    coarse = np.array(fine_to_coarse)
    return float((coarse[labels] == coarse[predicted]).mean())
