"""The final layer, on features that are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.imaging.framing import Preprocessing
from training.head import Head, Known, balanced_weights, fit_head
from training.network import Network

Floats = NDArray[np.float32]


def cells(n: int, shift: float, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Return features [4 n, 512] around a place of each class, all shifted, and their classes."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), n)
    features = 0.1 * draw.normal(size=(4 * n, 512))
    features[np.arange(4 * n), labels] += 1
    features[np.arange(4 * n), 4 + (labels + 1) % 4] += shift  # in this laboratory another place, too
    return features.astype(np.float32), labels


@pytest.fixture(scope="module")
def head() -> Head:
    weights = np.zeros((4, 512), np.float32)
    weights[np.arange(4), np.arange(4)] = 5
    weights[np.arange(4), 4 + np.arange(4)] = 5  # misleading where cells are shifted
    return Head(weights, np.zeros(4, np.float32))


def right(head: Head, features: Floats, labels: NDArray[np.int64]) -> float:
    return float((head.logits(features).argmax(1) == labels).mean())


def test_it_learns_the_laboratory_and_keeps_what_was_known(head: Head) -> None:
    own, labels = cells(10, shift=1.5)
    home, home_labels = cells(10, shift=0.0, seed=1)
    assert right(head, own, labels) < 0.1
    fitted = fit_head(head, own, labels, Known.answered(home, head), ridge=0.001)
    others, other_labels = cells(10, shift=1.5, seed=2)
    assert right(fitted, others, other_labels) > 0.95
    assert right(fitted, home, home_labels) == right(head, home, home_labels) == 1


def test_a_firm_ridge_leaves_it_where_it_was(head: Head) -> None:
    own, labels = cells(10, shift=1.5)
    firm, loose = (fit_head(head, own, labels, Known.answered(own, head), ridge) for ridge in (1e4, 1e-3))
    assert np.abs(firm.weights - head.weights).max() < 1e-3
    assert np.abs(loose.weights - head.weights).max() > 0.1


def test_classes_weigh_the_same_however_many_their_cells(head: Head) -> None:
    labels = np.array([0] * 6 + [1] * 2)
    weights = balanced_weights(labels)
    assert weights.mean() == pytest.approx(1)
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())
    own, classes = cells(8, shift=1.5)
    more = np.concatenate([np.tile(np.arange(8), 3), np.arange(8, 32)])  # the first class three times
    known = Known.answered(cells(8, shift=0.0)[0], head)
    once = fit_head(head, own, classes, known, ridge=0.1)
    thrice = fit_head(head, own[more], classes[more], known, ridge=0.1)
    np.testing.assert_allclose(thrice.weights, once.weights, atol=0.01)
    assert np.abs(once.weights - head.weights).max() > 0.2


def test_known_cells_have_the_heads_answers_or_labels(head: Head) -> None:
    features, labels = cells(2, shift=0.0)
    known = Known.answered(features, head)
    assert known.probabilities.sum(1) == pytest.approx(1, abs=1e-5)
    assert (known.probabilities.argmax(1) == labels).all()
    assert (Known.labelled(features, labels, 4).probabilities == np.eye(4)[labels]).all()


def test_a_head_is_put_on_a_copy_of_the_network(head: Head) -> None:
    network = Network(4, Preprocessing(size=32)).eval()
    before = Head.of(network)
    changed = head.on(network)
    assert (Head.of(changed).weights == head.weights).all()
    assert (Head.of(network).weights == before.weights).all()
    assert torch.equal(changed.trunk.conv1.weight, network.trunk.conv1.weight)
