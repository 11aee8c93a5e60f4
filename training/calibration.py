"""What turns logits and features into honest probabilities and a measure of strangeness."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.vision.classifier import Distances, softmax

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


class Embedded(Protocol):
    @property
    def features(self) -> Floats: ...
    @property
    def labels(self) -> Labels: ...


def temperature_for(logits: Floats, labels: Labels, weights: Floats) -> float:
    """The T > 0 that minimises the weighted log loss of softmax(logits / T) (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        chosen = softmax(logits / np.exp(log_temperature))[np.arange(len(labels)), labels]
        return float(np.average(-np.log(np.maximum(chosen, 1e-12)), weights=weights))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.2), np.log(10)), method="bounded").x))


def ood_distances(scored: Embedded) -> Distances:
    """Class means and the inverse of their shared covariance, shrunk (Ledoit and Wolf 2004)."""
    from sklearn.covariance import LedoitWolf

    classes = np.unique(scored.labels)
    means = np.stack([scored.features[scored.labels == k].mean(0) for k in classes])
    centred = scored.features - means[np.searchsorted(classes, scored.labels)]
    precision = LedoitWolf(assume_centered=True).fit(centred).precision_
    return Distances(means.astype(np.float32), precision.astype(np.float32))


def weighted_quantile(values: Floats, weights: Floats, q: float) -> float:
    """The value below which a share q of the weight lies."""
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(share, q)), len(values) - 1)])
