from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn import metrics

from app.evaluation import scores
from tests.evaluation.cases import random_case


def matrix(labels: Sequence[int], predictions: Sequence[int]) -> scores.Ints:
    confusion: scores.Ints = metrics.confusion_matrix(labels, predictions, labels=range(3))
    return confusion


def test_kappa_and_mcc_are_scikit_learns() -> None:
    labels, probabilities = random_case()
    predictions = probabilities.argmax(axis=1)
    table = metrics.confusion_matrix(labels, predictions)
    kappa = metrics.cohen_kappa_score(labels, predictions)
    assert scores.cohen_kappa(table) == pytest.approx(kappa, rel=1e-12)
    assert scores.matthews_corrcoef(table) == pytest.approx(
        metrics.matthews_corrcoef(labels, predictions), rel=1e-12
    )


def test_kappa_and_mcc_are_those_of_their_formulas() -> None:
    table = matrix([0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 0, 2, 0])
    true, called, n, hits = np.array([3, 2, 2]), np.array([4, 2, 1]), 7, 4
    by_chance = true @ called
    assert scores.cohen_kappa(table) == pytest.approx((n * hits - by_chance) / (n * n - by_chance))
    spread = math.sqrt((n * n - called @ called) * (n * n - true @ true))
    assert scores.matthews_corrcoef(table) == pytest.approx((n * hits - by_chance) / spread)


def test_agreement_of_a_single_class_is_none() -> None:
    same = matrix([1, 1], [1, 1])
    assert scores.cohen_kappa(same) is None
    assert scores.matthews_corrcoef(same) is None


@pytest.mark.parametrize(("labels", "predictions"), [([0, 1], [0, 0]), ([0, 0], [0, 1]), ([0, 0], [1, 1])])
def test_mcc_is_none_where_one_side_does_not_vary_but_kappa_is_0(
    labels: list[int], predictions: list[int]
) -> None:
    assert scores.matthews_corrcoef(matrix(labels, predictions)) is None
    assert scores.cohen_kappa(matrix(labels, predictions)) == pytest.approx(0)


def test_log_loss_and_roc_auc_are_scikit_learns() -> None:
    labels, probabilities = random_case()
    auc = metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert scores.roc_auc(labels, probabilities) == pytest.approx(auc)
    coarse = probabilities.round(1)  # has many ties
    areas = [metrics.roc_auc_score(labels == index, column) for index, column in enumerate(coarse.T)]
    assert scores.roc_auc(labels, coarse) == pytest.approx(np.mean(areas))
    assert scores.log_loss(labels, probabilities) == pytest.approx(metrics.log_loss(labels, probabilities))


def test_brier_is_0_when_sure_and_right_and_two_when_sure_and_wrong() -> None:
    assert scores.brier(np.array([0, 1]), np.array([[1.0, 0.0], [0.0, 1.0]])) == 0
    assert scores.brier(np.array([0, 1]), np.array([[0.0, 1.0], [1.0, 0.0]])) == 2


def test_calibration_error_pools_the_images_of_a_bin() -> None:
    # One bin holds 0.61 right and 0.65 wrong, another 0.9 right: (|0.39 - 0.65| + 0.1) / 3.
    probabilities = np.array([[0.61, 0.39], [0.65, 0.35], [0.1, 0.9]])
    error = scores.calibration_error(np.array([0, 1, 1]), probabilities)
    assert error == pytest.approx((0.26 + 0.1) / 3)


def test_calibration_error_agrees_with_one_written_as_a_loop() -> None:
    labels, probabilities = random_case()
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert scores.calibration_error(labels, probabilities) == pytest.approx(expected)


def test_a_true_class_of_probability_0_leaves_log_loss_finite() -> None:
    loss = scores.log_loss(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert 17 < loss < 20  # half of -ln 2.2e-16


def test_roc_auc_is_none_where_a_class_is_absent() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    assert scores.roc_auc(np.array([0, 1]), probabilities) is None
    assert scores.roc_auc(np.array([0, 0]), probabilities[:, :2]) is None


def test_without_probabilities_their_scores_are_none() -> None:
    assert set(scores.judge(np.array([0, 1]), None).values()) == {None}
