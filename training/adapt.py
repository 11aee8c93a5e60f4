"""Adapt a bundle's network to one laboratory, from its own cells alone.

Only the final layer changes (`training.head`), on the features of several augmented views of each cell. How
far it may move is chosen by cross-validation within the given cells.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from app.evaluation.review_thresholds import Flags
from app.evaluation.verification import undivided
from training.augment import augment
from training.class_sizes import check_labels
from training.config import Augmentation
from training.head import Head, Known, balanced_weights, fit_head
from training.network import Network, reset_statistics
from training.patches import room_for

VIEWS = 6  # augmented ones of each cell, beside the one that the service frames
RIDGES = (0.1, 0.01, 0.001)  # how firmly the final layer is held
BATCH = 32
RENEWED = 0.75  # share of the way from the batch statistics before to those of a laboratory's pictures
FOLDS = 4

# One laboratory's own stain varies little; position and size vary as in any training.
VARIATION = Augmentation(
    rotation=180.0,
    scale=(0.75, 1.3),
    shift=0.05,
    shear=5.0,
    brightness=0.1,
    contrast=0.1,
    saturation=0.15,
    tint=0.05,
    stain=0.05,
    strength=0.1,
    exchange=0.0,
    blur=0.2,
)

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class OwnCells:
    """n labelled cells of a laboratory.

    framed uint8 [n, size, size, 3]: as the service frames them. patches uint8 [n, p, p, 3]: for augmentation.
    labels [n]: class indices. groups [n]: patient, slide or photo of each. poor [n]: whether the picture's
    quality sends it to review; None: no picture's does. hashes [n]: SHA-256 of each picture; empty: unknown.
    """

    framed: Pixels
    patches: Pixels
    labels: NDArray[np.int64]
    groups: Sequence[str]
    poor: Flags | None = None
    hashes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: Sequence[int]) -> OwnCells:
        return OwnCells(
            self.framed[places],
            self.patches[places],
            self.labels[places],
            [self.groups[place] for place in places],
            None if self.poor is None else self.poor[places],
            [self.hashes[place] for place in places] if self.hashes else (),
        )


@dataclass(frozen=True)
class Outputs:
    """A network's logits [n, classes] and features [n, 512]."""

    logits: Floats
    features: Floats


@dataclass(frozen=True)
class Start:
    """A network before its final layer changes.

    views [1 + VIEWS, n, 512]: features of the laboratory's cells, first as the service frames them. known:
    cells whose answers must stay.
    """

    network: Network
    views: Floats
    known: Known

    @property
    def head(self) -> Head:
        return Head.of(self.network)

    def fit(self, labels: NDArray[np.int64], places: Sequence[int], ridge: float) -> Head:
        """Return the final layer fitted to the cells at these places. labels [n]: of all cells."""
        given = self.views[:, places]
        features = given.reshape(-1, given.shape[2])
        return fit_head(self.head, features, np.tile(labels[places], len(given)), self.known, ridge)


@dataclass(frozen=True)
class Candidate:
    """A start, by its place in the list of starts, and one of `RIDGES`; None: its final layer as it is."""

    start: int
    ridge: float | None


@dataclass(frozen=True)
class Trial:
    """What each candidate answers to the cells that its fold held out; the first is the bundle as it is."""

    outputs: Mapping[Candidate, Outputs]

    def ranked(self, labels: NDArray[np.int64]) -> list[Candidate]:
        """Return the candidates by their log loss, classes weighing the same, the least first."""
        weights = balanced_weights(labels)
        return sorted(self.outputs, key=lambda one: log_loss(self.outputs[one].logits, labels, weights))


def check_cells(cells: OwnCells, names: Sequence[str]) -> None:
    """Raise DataError if a class has too few cells."""
    check_labels(cells.labels.tolist(), names)


def begin(
    network: Network, cells: OwnCells, known: Floats, replay: OwnCells | None = None, seed: int = 0
) -> Start:
    """Return a start. known [k, 512]: features of known cells, whose answers must stay.

    replay: labelled cells of other laboratories in their place.
    """
    head = Head.of(network)
    if replay is None:
        kept = Known.answered(known, head)
    else:
        kept = Known.labelled(run(network, replay.framed).features, replay.labels, len(head.biases))
    return Start(network, view(network, cells, seed), kept)


def view(network: Network, cells: OwnCells, seed: int) -> Floats:
    """Return the features [1 + VIEWS, n, 512] of the cells as framed, and of augmented views of them."""
    rng = torch.Generator().manual_seed(seed)
    room, size = room_for(VARIATION), cells.framed.shape[1]

    def augmented() -> Floats:
        pixels = (augment(patches, size, room, VARIATION, rng) for patches in batches_of(cells.patches))
        return np.concatenate([run(network, batch.numpy()).features for batch in pixels])

    return np.stack([run(network, cells.framed).features, *(augmented() for _ in range(VIEWS))])


def cross_validate(starts: Sequence[Start], cells: OwnCells, seed: int = 0) -> Trial:
    """Fit each start's final layer without each fold, for each of `RIDGES`, and answer the fold.

    starts: of the bundle's network first.
    """
    fold = deal(cells, seed)
    outputs = {}
    for number, start in enumerate(starts):
        features = start.views[0]
        outputs[Candidate(number, None)] = Outputs(start.head.logits(features), features)
        for ridge in RIDGES:
            logits = np.zeros((len(cells), len(start.head.biases)), np.float32)
            for k in np.unique(fold):
                outside = fold == k
                head = start.fit(cells.labels, np.flatnonzero(~outside).tolist(), ridge)
                logits[outside] = head.logits(features[outside])
            outputs[Candidate(number, ridge)] = Outputs(logits, features)
    return Trial(outputs)


def follow(candidate: Candidate, starts: Sequence[Start], cells: OwnCells) -> Network:
    """Return the network of a candidate, fitted to all cells."""
    start = starts[candidate.start]
    if candidate.ridge is None:
        return deepcopy(start.network)
    return start.fit(cells.labels, range(len(cells)), candidate.ridge).on(start.network)


def deal(cells: OwnCells, seed: int) -> NDArray[np.int64]:
    """Return the fold of each cell: whole groups, each class spread as evenly as its groups allow.

    The cells of a class that has a single group are dealt one by one. Such a class cannot be judged on a
    slide that was not trained on; `undivided` names it.
    """
    single = set(undivided(cells.labels, cells.groups))
    units: dict[object, list[int]] = defaultdict(list)
    for place, (label, group) in enumerate(zip(cells.labels.tolist(), cells.groups, strict=True)):
        units[place if label in single else group].append(place)
    order = sorted(units, key=str)
    random.Random(seed).shuffle(order)
    classes = int(cells.labels.max()) + 1
    total = np.bincount(cells.labels, minlength=classes)
    loads = np.zeros((FOLDS, classes))  # shares of each class
    fold = np.zeros(len(cells), np.int64)
    for unit in sorted(order, key=lambda unit: -len(units[unit])):
        share = np.bincount(cells.labels[units[unit]], minlength=classes) / np.maximum(total, 1)
        # The fold that has least of these classes, then least of all.
        chosen = min(range(FOLDS), key=lambda k: (float(loads[k] @ share), float(loads[k].sum())))
        loads[chosen] += share
        fold[units[unit]] = chosen
    return fold


@torch.no_grad()
def run(network: Network, framed: Pixels | Floats) -> Outputs:
    """Run the network on framed cells [n, size, size, 3], levels 0 to 255."""
    network = network.to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU
    batches = [network(pixels)[:2] for pixels in batches_of(framed)]
    logits, features = (torch.cat(column).numpy() for column in zip(*batches, strict=True))
    return Outputs(logits, features)


def batches_of(framed: Pixels | Floats) -> list[Tensor]:
    return [torch.from_numpy(framed[start : start + BATCH]) for start in range(0, len(framed), BATCH)]


@torch.no_grad()
def renew_statistics(network: Network, framed: Pixels) -> Network:
    """Return a copy with batch statistics nearer to those of these pictures, which need no labels.

    All the way is AdaBN (Li et al. 2016); `RENEWED` of it costs less where the laboratory is known already.
    """
    renewed = deepcopy(network)
    reset_statistics(renewed)
    renewed.train()
    for pixels in batches_of(framed):
        if len(pixels) > 1:
            renewed(pixels)
    before = network.trunk.state_dict()
    for name, tensor in renewed.trunk.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.lerp(before[name], tensor, RENEWED))
    return renewed.eval()


def log_loss(logits: Floats, labels: NDArray[np.int64], weights: Floats) -> float:
    losses: Tensor = cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), reduction="none")
    return float(np.average(losses.numpy(), weights=weights))
