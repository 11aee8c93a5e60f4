"""The final layer of a network, fitted to a laboratory's cells without forgetting those that it knows."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.network import Network

SMOOTHING = 0.05  # of the labels
KNOWN = 1.0  # weight of the known cells beside the laboratory's own
BIAS = 0.01  # how much less a bias is held than a weight
ITERATIONS = 100  # of L-BFGS, at most

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """weights [classes, 512], biases [classes]."""

    weights: Floats
    biases: Floats

    @classmethod
    def of(cls, network: Network) -> Head:
        layer = network.trunk.fc
        return cls(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy())

    def logits(self, features: Floats) -> Floats:
        """features [n, 512] → logits [n, classes]."""
        logits: Floats = features @ self.weights.T + self.biases
        return logits

    @torch.no_grad()
    def on(self, network: Network) -> Network:
        """Return a copy of the network with this final layer."""
        changed = deepcopy(network)
        changed.trunk.fc.weight.copy_(torch.from_numpy(self.weights))
        changed.trunk.fc.bias.copy_(torch.from_numpy(self.biases))
        return changed


@dataclass(frozen=True)
class Known:
    """Cells whose answers must stay: features [k, 512], probabilities [k, classes]."""

    features: Floats
    probabilities: Floats

    @classmethod
    def answered(cls, features: Floats, head: Head) -> Known:
        """Cells of unknown class, whose answers are those of a head (distillation, Hinton et al. 2015)."""
        return cls(features, torch.from_numpy(head.logits(features)).softmax(1).numpy())

    @classmethod
    def labelled(cls, features: Floats, labels: NDArray[np.int64], classes: int) -> Known:
        return cls(features, np.eye(classes, dtype=np.float32)[labels])


def fit_head(before: Head, features: Floats, labels: NDArray[np.int64], known: Known, ridge: float) -> Head:
    """Return the head that recognises the cells, classes weighing the same, and answers known ones as before.

    A logistic regression: features [m, 512], labels [m]. ridge: weight of the squared distance from the head
    before.
    """
    given, classes = torch.from_numpy(features), torch.from_numpy(labels)
    weights = torch.from_numpy(balanced_weights(labels) / len(labels))
    kept, answers = torch.from_numpy(known.features), torch.from_numpy(known.probabilities)
    start = torch.from_numpy(before.weights), torch.from_numpy(before.biases)
    moves = [torch.zeros_like(part, requires_grad=True) for part in start]
    optimizer = torch.optim.LBFGS(moves, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def answer(cells: Tensor) -> Tensor:
        return cells @ (start[0] + moves[0]).T + start[1] + moves[1]

    def loss() -> Tensor:
        optimizer.zero_grad()
        wrong = cross_entropy(answer(given), classes, reduction="none", label_smoothing=SMOOTHING)
        moved = (moves[0] ** 2).sum() + BIAS * (moves[1] ** 2).sum()
        total: Tensor = (weights * wrong).sum() + KNOWN * cross_entropy(answer(kept), answers) + ridge * moved
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return Head(*((part + move).detach().numpy() for part, move in zip(start, moves, strict=True)))


def balanced_weights(labels: NDArray[np.int64]) -> Floats:
    """Return weights that are equal for each class, with mean 1."""
    counts = np.bincount(labels)
    weights: Floats = (len(labels) / np.count_nonzero(counts) / counts[labels]).astype(np.float32)
    return weights
