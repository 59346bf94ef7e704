"""Figures from logits, against scikit-learn and against hand computations on small arrays."""

import math

import numpy as np
import pytest
from sklearn import metrics

from trainables.evaluation import scoring

LOGITS = np.log(
    np.array(
        [
            [0.7, 0.2, 0.1],
            [0.1, 0.6, 0.3],
            [0.5, 0.4, 0.1],
            [0.2, 0.3, 0.5],
            [0.3, 0.6, 0.1],
        ]
    )
)
LABELS = np.array([0, 1, 1, 2, 0])
PREDICTED = np.array([0, 1, 0, 2, 1])


def test_the_ranking_is_by_probability_and_lower_classes_first_among_equals():
    assert scoring.ranking(LOGITS, 2).tolist() == [[0, 1], [1, 2], [0, 1], [2, 1], [1, 0]]
    assert scoring.ranking(np.zeros((1, 7))).tolist() == [[0, 1, 2, 3, 4]]
    assert scoring.ranking(LOGITS).shape == (5, 3)


def test_top_k_equals_scikit_learns_where_no_two_logits_are_equal():
    random = np.random.RandomState(0)
    logits, labels = random.randn(200, 20), random.randint(20, size=200)
    hits = scoring.ranking(logits) == labels[:, None]
    for k in (1, 3, 5):
        theirs = metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(20))
        assert hits[:, :k].any(axis=1).mean() == theirs


def test_loss_and_probabilities_are_those_of_the_softmax():
    by_hand = -(math.log(0.7) + math.log(0.6) + math.log(0.4) + math.log(0.5) + math.log(0.3)) / 5
    assert scoring.cross_entropy(LOGITS, LABELS) == pytest.approx(by_hand)
    assert scoring.cross_entropy(LOGITS + 1000, LABELS) == pytest.approx(by_hand)
    assert scoring.probabilities(LOGITS - 1000) == pytest.approx(np.exp(LOGITS))
    assert metrics.log_loss(LABELS, np.exp(LOGITS)) == pytest.approx(by_hand)


def test_class_figures_equal_a_hand_computation():
    precision, recall, f1, support = scoring.class_figures(LABELS, PREDICTED, 3)
    assert precision.per_class == [0.5, 0.5, 1.0]
    assert recall.per_class == [0.5, 0.5, 1.0]
    assert f1.per_class == [0.5, 0.5, 1.0]
    assert support == [2, 2, 1]
    assert recall.macro == pytest.approx(2 / 3)
    assert recall.weighted == pytest.approx(3 / 5)
    assert scoring.confusion(LABELS, PREDICTED, 3) == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_a_class_without_images_or_predictions_counts_zero():
    precision, recall, f1, support = scoring.class_figures(LABELS, PREDICTED, 5)
    assert (precision.per_class[3:], recall.per_class[3:], support[3:]) == ([0, 0], [0, 0], [0, 0])
    assert f1.macro == pytest.approx(2 / 5)
    assert f1.weighted == pytest.approx(3 / 5)
    matrix = scoring.confusion(LABELS, PREDICTED, 5)
    assert np.array(matrix).shape == (5, 5)
    assert np.trace(matrix) == 3


def test_calibration_equals_a_hand_computation():
    # Bins of 1/15: 0.2 is the upper edge of bin 2 and belongs to it; 0.21 is in bin 3.
    confidence = np.array([3 / 15, 0.21, 0.25, 1.0])
    hits = np.array([True, False, True, True])
    diagram, ece = scoring.calibration(confidence, hits)
    assert diagram.count == [0, 0, 1, 2, *[0] * 10, 1]
    assert diagram.confidence == pytest.approx([0, 0, 0.2, 0.23, *[0] * 10, 1.0])
    assert diagram.accuracy == pytest.approx([0, 0, 1, 0.5, *[0] * 10, 1.0])
    assert ece == pytest.approx(1 / 4 * 0.8 + 2 / 4 * 0.27 + 0)


def test_calibration_bins_average_as_scikit_learns_curve():
    from sklearn.calibration import calibration_curve

    random = np.random.RandomState(1)
    confidence = random.uniform(0.001, 1, 500)
    hits = random.uniform(size=500) < confidence
    diagram, ece = scoring.calibration(confidence, hits)
    accuracy, mean = calibration_curve(hits, confidence, n_bins=15)
    assert diagram.accuracy == pytest.approx(accuracy)
    assert diagram.confidence == pytest.approx(mean)
    assert ece == pytest.approx(np.abs(accuracy - mean) @ diagram.count / 500)


def test_superclass_accuracy_counts_the_right_superclass():
    assert scoring.superclass_top1(LABELS, PREDICTED, (0, 0, 1)) == 1.0
    assert scoring.superclass_top1(LABELS, PREDICTED, (0, 1, 1)) == pytest.approx(3 / 5)
    # A class without images has no superclass, and a prediction of it is wrong.
    assert scoring.superclass_top1(np.array([0]), np.array([1]), (0, -1)) == 0.0
    assert scoring.superclass_top1(LABELS, PREDICTED, ()) is None
