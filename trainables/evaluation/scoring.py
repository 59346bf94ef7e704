"""Figures of a classifier from its logits on a set of images; numpy and scikit-learn, no torch.

Legend: n images, k classes. Fractions are 0 to 1. It holds no state.
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
    """One figure per class, its plain mean over the classes, and its mean weighted by support."""

    per_class: list[float]
    macro: float
    weighted: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Images by the confidence of their prediction, in 15 bins of equal width; 0.0 where empty."""

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

    Of equal logits, which bfloat16 often gives, the lower class number goes first. One order for
    all figures: scikit-learn's top-k score breaks ties otherwise, and top-5 could fall below top-1.
    """
    order: Ints = np.argsort(-logits, axis=1, kind="stable")[:, :depth]
    return order


def class_figures(
    labels: Ints, predicted: Ints, num_classes: int
) -> tuple[ClassFigures, ClassFigures, ClassFigures, list[int]]:
    """Return precision, recall, F1, and the number of images per class.

    Computed by scikit-learn over all k classes; what would be a division by zero counts 0.
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
    """Return how often each class (row) was taken for each class (column), (k, k)."""
    from sklearn.metrics import confusion_matrix

    matrix: list[list[int]] = confusion_matrix(
        labels, predicted, labels=range(num_classes)
    ).tolist()
    return matrix


def calibration(confidence: Floats, hits: npt.NDArray[np.bool_]) -> tuple[Calibration, float]:
    """Return the reliability diagram and the expected calibration error.

    Args:
        confidence: (n,) probability of the predicted class; bin m holds those in
            ((m - 1) / 15, m / 15].
        hits: (n,) whether the prediction was right.

    Returns:
        The bins, and the mean over all images of |accuracy - confidence| of their bin.

    Source:
        Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, equations 2 and 3.
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
    """Return how often the predicted class is of the right superclass; None without superclasses.

    Args:
        labels: (n,).
        predicted: (n,).
        fine_to_coarse: the superclass of each class, as in `data.Manifest`.
    """
    if not fine_to_coarse:
        return None
    coarse = np.array(fine_to_coarse)
    return float((coarse[labels] == coarse[predicted]).mean())
