"""Scores of labels, predictions and probabilities, in NumPy: importing scikit-learn takes 2 s and 100 MB."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Judgement(TypedDict):
    log_loss: float | None
    brier: float | None
    ece: float | None
    roc_auc_ovr: float | None


def judge(labels: Ints, probabilities: Floats | None) -> Judgement:
    """Score the probabilities [n, classes]; all scores are None without them."""
    if probabilities is None:
        return Judgement(log_loss=None, brier=None, ece=None, roc_auc_ovr=None)
    return Judgement(
        log_loss=log_loss(labels, probabilities),
        brier=brier(labels, probabilities),
        ece=calibration_error(labels, probabilities),
        roc_auc_ovr=roc_auc(labels, probabilities),
    )


def cohen_kappa(matrix: Ints) -> float | None:
    """Return Cohen's kappa (1960) of a confusion matrix; None if chance agreement is 1: all are one class."""
    support, predicted, n = _margins(matrix)
    chance = support @ predicted
    if chance == n * n:
        return None
    return float((n * np.trace(matrix) - chance) / (n * n - chance))


def matthews_corrcoef(matrix: Ints) -> float | None:
    """Return the correlation of a confusion matrix (Gorodkin 2004); None if either side is all one class."""
    support, predicted, n = _margins(matrix)
    spread = float(n * n - support @ support) * float(n * n - predicted @ predicted)
    if spread == 0:
        return None
    return float((n * np.trace(matrix) - support @ predicted) / spread**0.5)


def log_loss(labels: Ints, probabilities: Floats) -> float:
    """Return the mean -ln of the true class's probability, clipped to at least 2e-16 to keep it finite."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(true.clip(np.finfo(np.float64).eps, 1)).mean())


def brier(labels: Ints, probabilities: Floats) -> float:
    """Return Brier's original multi-class score: squared error summed over classes, 0 to 2, not halved."""
    truth = np.eye(probabilities.shape[1])[labels]
    return float(np.square(probabilities - truth).sum(axis=1).mean())


def calibration_error(labels: Ints, probabilities: Floats, bins: int = 15) -> float:
    """Return the expected calibration error of the top class, over right-closed bins of equal width."""
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    bin_index = np.ceil(confidence * bins).astype(np.int64)
    return float(np.abs(np.bincount(bin_index, weights=gap)).sum() / len(labels))


def roc_auc(labels: Ints, probabilities: Floats) -> float | None:
    """Return the unweighted mean of the one-vs-rest areas of all classes; None if a class is absent."""
    classes = range(probabilities.shape[1])
    support = np.bincount(labels, minlength=len(classes))
    if len(classes) < 2 or not support.all():
        return None
    return float(np.mean([_area(labels == index, probabilities[:, index]) for index in classes]))


def _margins(matrix: Ints) -> tuple[Ints, Ints, int]:
    return matrix.sum(axis=1), matrix.sum(axis=0), int(matrix.sum())


def _area(positive: NDArray[np.bool_], values: Floats) -> float:
    """Return the area under the ROC curve: the share of pairs in order, half for a tie (Mann and Whitney)."""
    order = np.sort(values)
    below, upto = np.searchsorted(order, values, "left"), np.searchsorted(order, values, "right")
    ranks = (below + upto + 1) / 2  # mean rank from 1 among equal values
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(values) - n)))
