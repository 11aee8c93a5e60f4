"""Scores of a whole set in one number: agreement beyond chance, and what the probabilities are worth."""

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
    """What the probabilities [n, classes] are worth; all None without them."""
    if probabilities is None:
        return Judgement(log_loss=None, brier=None, ece=None, roc_auc_ovr=None)
    return Judgement(
        log_loss=log_loss(labels, probabilities),
        brier=brier(labels, probabilities),
        ece=calibration_error(labels, probabilities),
        roc_auc_ovr=roc_auc(labels, probabilities),
    )


def cohen_kappa(labels: Ints, predictions: Ints) -> float | None:
    """None where labels and predictions are all one class: chance alone would agree fully."""
    if len(np.union1d(labels, predictions)) == 1:
        return None
    return float(metrics.cohen_kappa_score(labels, predictions))


def matthews_corrcoef(labels: Ints, predictions: Ints) -> float | None:
    """None where labels or predictions do not vary; scikit-learn has 0 there."""
    if len(np.unique(labels)) == 1 or len(np.unique(predictions)) == 1:
        return None
    return float(metrics.matthews_corrcoef(labels, predictions))


def log_loss(labels: Ints, probabilities: Floats) -> float:
    """Mean -ln of the true class's probability, which is held above 2e-16 so that the mean is finite."""
    return float(metrics.log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1])))


def brier(labels: Ints, probabilities: Floats) -> float:
    """Brier's own multi-class score: squared error summed over classes, 0 to 2, not halved."""
    truth = np.eye(probabilities.shape[1])[labels]
    return float(np.square(probabilities - truth).sum(axis=1).mean())


def calibration_error(labels: Ints, probabilities: Floats, bins: int = 15) -> float:
    """Expected calibration error of the most probable class, in bins of equal width, closed above."""
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    place = np.ceil(confidence * bins).astype(np.int64)
    return float(np.abs(np.bincount(place, weights=gap)).sum() / len(labels))


def roc_auc(labels: Ints, probabilities: Floats) -> float | None:
    """Unweighted mean over classes of one-vs-rest areas; None where a class is absent."""
    classes = range(probabilities.shape[1])
    if len(np.unique(labels)) < max(2, len(classes)):
        return None
    areas = [metrics.roc_auc_score(labels == index, probabilities[:, index]) for index in classes]
    return float(np.mean(areas))
