"""What networks say: one of a set of images, or those of a run of the images that each never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from app.engine.bundle import CLASSES
from app.engine.classifier import Neighbours
from training.calibration import neighbours_of
from training.config import TrainConfig
from training.data import Row
from training.loading import Batch, evaluation_loader
from training.module import BEST, load_checkpoint
from training.network import Network
from training.rows import fold_path, fold_rows
from training.split import thin

BANK = 150  # cells of each class of each archive that out-of-distribution scores are measured from

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """A set of images through a network: logits [n, 4], features [n, 512], labels [n], weights [n]."""

    logits: Floats
    features: Floats
    labels: NDArray[np.int64]
    weights: Floats


@dataclass(frozen=True)
class Unseen:
    """Images as judged by networks that were not trained on them: logits [n, 4], the rest [n]."""

    logits: Floats
    ood_scores: Floats
    labels: NDArray[np.int64]
    weights: Floats


@torch.no_grad()
def score(network: Network, loader: DataLoader[Batch]) -> Scored:
    network = network.to(memory_format=torch.channels_last)  # half as fast again on a CPU
    parts = [(*network(pixels)[:2], labels, weights.float()) for pixels, labels, weights in loader]
    return Scored(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


def judge_unseen(
    network: Network, rows: Sequence[Row], neighbours: Neighbours, config: TrainConfig
) -> Unseen:
    """`rows` were not among those that the network and its neighbours come from."""
    found = score(network, evaluation_loader(rows, config))
    return Unseen(found.logits, neighbours.score(found.features), found.labels, found.weights)


def judge_folds(run: Path, train: Sequence[Row], validation: Sequence[Row], config: TrainConfig) -> Unseen:
    """Every photo by the network that was trained without it, and by that network's own neighbours."""
    parts = []
    for k, (some, held_out) in enumerate(fold_rows(train, validation, config)):
        network = load_checkpoint(fold_path(run, k) / BEST, config)
        parts.append(judge_unseen(network, held_out, find_neighbours(network, some, config), config))
    columns = zip(*((p.logits, p.ood_scores, p.labels, p.weights) for p in parts), strict=True)
    return Unseen(*(np.concatenate(column) for column in columns))


def find_neighbours(network: Network, train: Sequence[Row], config: TrainConfig) -> Neighbours:
    rows = balanced_sample(train, BANK)
    groups = len({(row.archive, row.label) for row in rows})
    return neighbours_of(score(network, evaluation_loader(rows, config)).features, groups)


def balanced_sample(rows: Sequence[Row], n: int) -> list[Row]:
    """Up to n rows of each class of each archive, spread over the photos."""
    chosen: list[Row] = []
    for archive in sorted({row.archive for row in rows}):
        for label in CLASSES:
            group = [row for row in rows if (row.archive, row.label) == (archive, label)]
            per_source = 1
            while len(picked := thin(group, per_source, 0)) < min(n, len(group)):
                per_source *= 2
            chosen += [picked[i * len(picked) // n] for i in range(n)] if len(picked) > n else picked
    return chosen
