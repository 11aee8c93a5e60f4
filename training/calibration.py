"""Calibration: the temperature, the reference features of the OOD score, and weighted quantiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.engine.classifier import Bank, Neighbours, softmax
from app.engine.laboratories import Styles

SHRINKAGE = 1e-3  # of the mean variance, added to each: the descriptions are correlated

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def temperature_for(logits: Floats, labels: Labels, weights: Floats) -> float:
    """Return the T that minimises the weighted log loss of softmax(logits / T) (Guo et al. 2017).

    T is searched between 0.2 and 10.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature))[np.arange(len(labels)), labels]
        return float(np.average(-np.log(np.maximum(probabilities, 1e-12)), weights=weights))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.2), np.log(10)), method="bounded").x))


def neighbours_of(known: Bank, others: Bank | None = None) -> Neighbours:
    """Return the k-nearest-neighbour OOD score, scaled so that the known cells' own median is 1."""
    scores = Neighbours(known, 1.0, others).score(known.features)
    return Neighbours(known, float(np.median(scores)) or 1.0, others)


def bank_of(features: Floats, groups: int) -> Bank:
    """Return a bank of features [m, 512], about as many of each group: a pair of class and laboratory.

    k is a third of a group: with a smaller k, cells of an unknown class find near neighbours too often.
    """
    return Bank(features, max(1, round(len(features) / groups / 3)))


def styles_of(descriptions: Floats, laboratories: Sequence[str]) -> Styles:
    """Return the mean style of each laboratory and the whitening of all, from descriptions [n, 30]."""
    names, places = np.unique(laboratories, return_inverse=True)
    centres = np.stack([descriptions[places == place].mean(0) for place in range(len(names))])
    covariance = np.cov((descriptions - centres[places]).T)
    covariance += SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whitening = np.linalg.cholesky(np.linalg.inv(covariance))
    return Styles(centres.astype(np.float32), whitening.astype(np.float32))


def weighted_quantile(values: Floats, weights: Floats, q: float) -> float:
    """Return the value below which a share q of the total weight lies."""
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(share, q)), len(values) - 1)])
