"""Synthetic labels and probabilities for the tests of evaluation."""

from __future__ import annotations

import numpy as np

from app.evaluation.intervals import Floats, Ints


def random_case(seed: int = 0, n: int = 300, classes: int = 4) -> tuple[Ints, Floats]:
    """Return labels that include every class, and probabilities that lean towards them."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
