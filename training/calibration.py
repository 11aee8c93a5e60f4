"""What turns logits and features into honest probabilities and a measure of strangeness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.engine.classifier import Neighbours, softmax

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def temperature_for(logits: Floats, labels: Labels, weights: Floats) -> float:
    """The T > 0 that minimises the weighted log loss of softmax(logits / T) (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        chosen = softmax(logits / np.exp(log_temperature))[np.arange(len(labels)), labels]
        return float(np.average(-np.log(np.maximum(chosen, 1e-12)), weights=weights))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.2), np.log(10)), method="bounded").x))


def neighbours_of(bank: Floats, groups: int) -> Neighbours:
    """bank: features [m, 512] of equally many cells of each of so many groups (class and laboratory).

    k is a third of a group: nearer ones are found even by cells of a class that is not among them.
    """
    k = max(1, round(len(bank) / groups / 3))
    own = Neighbours(bank, k, 1.0).score(bank)
    return Neighbours(bank, k, float(np.median(own)) or 1.0)


def weighted_quantile(values: Floats, weights: Floats, q: float) -> float:
    """The value below which a share q of the weight lies."""
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(share, q)), len(values) - 1)])
