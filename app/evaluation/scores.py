"""Scores of a whole set in one number: agreement beyond chance, and the quality of the probabilities."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

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


def cohen_kappa(labels: Ints, predictions: Ints) -> float | None:
    """Return Cohen's kappa; None if labels and predictions are all one class (chance agreement is 1)."""
    if len(np.union1d(labels, predictions)) == 1:
        return None
    return float(metrics.cohen_kappa_score(labels, predictions))


def matthews_corrcoef(labels: Ints, predictions: Ints) -> float | None:
    """Return the correlation; None if labels or predictions are all one class (scikit-learn returns 0)."""
    if len(np.unique(labels)) == 1 or len(np.unique(predictions)) == 1:
        return None
    return float(metrics.matthews_corrcoef(labels, predictions))


def log_loss(labels: Ints, probabilities: Floats) -> float:
    """Return the mean -ln of the true class's probability, clipped to at least 2e-16 to keep it finite."""
    return float(metrics.log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1])))


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
    if len(np.unique(labels)) < max(2, len(classes)):
        return None
    areas = [metrics.roc_auc_score(labels == index, probabilities[:, index]) for index in classes]
    return float(np.mean(areas))
