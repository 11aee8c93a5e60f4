"""Adapt a bundle's network to one laboratory, from its own cells alone.

A few steps of training that hold the weights near where they were (L2-SP, Li et al. 2018), with the batch
statistics frozen; then the weights on the way between before and after (WiSE-FT, Wortsman et al. 2022), which
forgets little. How far to go is chosen by cross-validation within the given cells.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.augment import augment
from training.config import Augmentation
from training.errors import DataError
from training.network import Network, reset_statistics
from training.patches import room_for

STEPS, BATCH = 60, 32
SMOOTHING = 0.05  # of the labels
LEARNING_RATE = 2e-4
HELD = 0.02  # weight of the squared distance from the weights before
WAYS = (0.0, 0.25, 0.5, 0.75, 1.0)  # from the weights before (0) to those after (1)
RENEWED = 0.75  # share of the way from the batch statistics before to those of a laboratory's pictures
FOLDS = 4
LEAST = 5  # cells of each class
TIMED = 2  # steps that tell how long all will take

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
    labels [n]: class indices. groups [n]: patient, slide or photo of each.
    """

    framed: Pixels
    patches: Pixels
    labels: NDArray[np.int64]
    groups: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: Sequence[int]) -> OwnCells:
        groups = [self.groups[place] for place in places]
        return OwnCells(self.framed[places], self.patches[places], self.labels[places], groups)


@dataclass(frozen=True)
class Outputs:
    """A network's logits [n, classes] and features [n, 512]."""

    logits: Floats
    features: Floats


@dataclass(frozen=True)
class Candidate:
    """Where the adaptation starts, a place in the list of starts, and how far it goes: one of `WAYS`."""

    start: int
    way: float


@dataclass(frozen=True)
class Trial:
    """What each candidate answers to the cells that its fold held out; the first is the bundle as it is."""

    outputs: Mapping[Candidate, Outputs]

    def best(self, labels: NDArray[np.int64]) -> Candidate:
        """Return the candidate with the least log loss, classes weighing the same."""
        weights = balanced_weights(labels)
        return min(self.outputs, key=lambda one: log_loss(self.outputs[one].logits, labels, weights))


def check_cells(cells: OwnCells, names: Sequence[str]) -> None:
    """Raise DataError if a class has fewer than `LEAST` cells."""
    counts = np.bincount(cells.labels, minlength=len(names))
    if few := [f"{name}: {n}" for name, n in zip(names, counts, strict=True) if n < LEAST]:
        raise DataError(
            f"at least {LEAST} cells of each class are needed; {', '.join(few)}. Label more cells,"
            " or use --unlabelled alone"
        )


def cross_validate(
    starts: Sequence[Network], cells: OwnCells, replay: OwnCells | None = None, seed: int = 0
) -> Trial:
    """Adapt each start without each fold and run the result on it, for each of `WAYS`.

    starts: the bundle's network first. replay: cells that must not be forgotten, half of each batch.
    """
    fold = deal(cells, seed)
    shape = (len(cells), starts[0].trunk.fc.out_features), (len(cells), starts[0].trunk.fc.in_features)
    outputs = {
        Candidate(start, way): Outputs(np.zeros(shape[0], np.float32), np.zeros(shape[1], np.float32))
        for start in range(len(starts))
        for way in WAYS
    }
    for k in np.unique(fold):
        inside, outside = np.flatnonzero(fold != k).tolist(), np.flatnonzero(fold == k).tolist()
        for start, network in enumerate(starts):
            after = tune(network, cells.take(inside), seed + int(k), replay)
            for way in WAYS:
                found = run(between(network, after, way), cells.framed[outside])
                whole = outputs[Candidate(start, way)]
                whole.logits[outside], whole.features[outside] = found.logits, found.features
    return Trial(outputs)


def deal(cells: OwnCells, seed: int) -> NDArray[np.int64]:
    """Return the fold of each cell: whole groups, each class spread as evenly as its groups allow.

    The cells of a class that has a single group are dealt one by one. Such a class cannot be judged on a
    slide that was not trained on; `undivided` names it.
    """
    single = set(undivided(cells))
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


def undivided(cells: OwnCells) -> list[int]:
    """Return the classes whose cells all come from one group."""
    groups: dict[int, set[str]] = defaultdict(set)
    for label, group in zip(cells.labels.tolist(), cells.groups, strict=True):
        groups[label].add(group)
    return sorted(label for label, found in groups.items() if len(found) < 2)


def tune(
    network: Network,
    cells: OwnCells,
    seed: int,
    replay: OwnCells | None = None,
    steps: int | None = None,
) -> Network:
    """Return a copy of the network after `STEPS` steps on these cells, classes drawn equally often.

    replay: half of each batch. steps: another number of them.
    """
    # In evaluation mode the batch statistics are frozen: a laboratory's few cells would spoil them.
    after = deepcopy(network).to(memory_format=torch.channels_last).eval()
    before = [weights.detach().clone() for weights in after.parameters()]
    optimizer = torch.optim.AdamW(after.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    rng = torch.Generator().manual_seed(seed)
    parts = [cells] if replay is None else [cells, replay]
    room, size = room_for(VARIATION), cells.framed.shape[1]
    for _ in range(STEPS if steps is None else steps):
        batches = [draw(part, BATCH // len(parts), rng) for part in parts]
        patches, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        pixels = augment(patches, size, room, VARIATION, rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits = after(pixels)[0]
        loss = cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
        distance = sum(
            ((weights - start) ** 2).sum() for weights, start in zip(after.parameters(), before, strict=True)
        )
        optimizer.zero_grad()
        total: Tensor = loss + HELD * distance
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return after


def expected_seconds(network: Network, cells: OwnCells, starts: int) -> float:
    """Return how long cross-validation of so many starts and the adaptation will take, from a few steps."""
    tune(network, cells, 0, steps=1)  # the first step allocates and compiles
    began = time.perf_counter()
    tune(network, cells, 0, steps=TIMED)
    step = (time.perf_counter() - began) / TIMED
    return step * STEPS * (starts * len(np.unique(deal(cells, 0))) + 1)


def draw(cells: OwnCells, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return n patches and labels, classes drawn equally often."""
    chances = torch.from_numpy(balanced_weights(cells.labels))
    drawn = torch.multinomial(chances, n, replacement=True, generator=rng)
    return torch.from_numpy(cells.patches[drawn.numpy()]), torch.from_numpy(cells.labels)[drawn]


@torch.no_grad()
def between(before: Network, after: Network, way: float) -> Network:
    """Return a network whose weights lie this far on the way from the one to the other."""
    mixed = deepcopy(before)
    end = after.trunk.state_dict()
    for name, tensor in mixed.trunk.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(end[name], way)
    return mixed


@torch.no_grad()
def run(network: Network, framed: Pixels) -> Outputs:
    """Run the network on framed cells uint8 [n, size, size, 3]."""
    batches = [network(pixels)[:2] for pixels in batches_of(framed)]
    logits, features = (torch.cat(column).numpy() for column in zip(*batches, strict=True))
    return Outputs(logits, features)


def batches_of(framed: Pixels) -> list[Tensor]:
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
    return between(network, renewed, RENEWED).eval()


def log_loss(logits: Floats, labels: NDArray[np.int64], weights: Floats) -> float:
    losses: Tensor = cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), reduction="none")
    return float(np.average(losses.numpy(), weights=weights))


def balanced_weights(labels: NDArray[np.int64]) -> Floats:
    """Return weights that are equal for each class, with mean 1."""
    counts = np.bincount(labels)
    weights: Floats = (len(labels) / np.count_nonzero(counts) / counts[labels]).astype(np.float32)
    return weights
