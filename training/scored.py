"""Logits and OOD scores of validation images that the network was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from app.engine.classifier import Bank, Neighbours
from training.calibration import bank_of, neighbours_of
from training.config import TrainConfig
from training.data import Row
from training.loading import Batch, evaluation_loader
from training.module import BEST, load_checkpoint
from training.network import Network
from training.rows import fold_path, fold_rows, seen_others
from training.split import thin

BANK = 150  # training cells per class and laboratory in the reference set of the OOD score

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """A network's output on n images: logits [n, classes], features [n, 512], labels [n], weights [n]."""

    logits: Floats
    features: Floats
    labels: NDArray[np.int64]
    weights: Floats


@dataclass(frozen=True)
class HeldOut:
    """Scores of n images by networks that were not trained on them: logits [n, classes], the rest [n].

    weights: equal for each class, photo and file of a fold; with laboratories, their sums are equal too.
    """

    rows: Sequence[Row]
    logits: Floats
    ood_scores: Floats
    labels: NDArray[np.int64]
    weights: Floats


@torch.no_grad()
def score(network: Network, loader: DataLoader[Batch]) -> Scored:
    """Run the network over all batches of the loader."""
    network = network.to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU
    batches = [(*network(pixels)[:2], labels, weights.float()) for pixels, labels, weights in loader]
    return Scored(*(torch.cat(column).numpy() for column in zip(*batches, strict=True)))


def score_held_out(
    network: Network, rows: Sequence[Row], neighbours: Neighbours, config: TrainConfig
) -> HeldOut:
    """Score `rows`, which neither the network nor its neighbours were made from."""
    scored = score(network, evaluation_loader(rows, config))
    return HeldOut(rows, scored.logits, neighbours.score(scored.features), scored.labels, scored.weights)


def score_folds(
    run: Path, train: Sequence[Row], validation: Sequence[Row], others: Sequence[Row], config: TrainConfig
) -> HeldOut:
    """Score each photo with the network that was trained without it, and with that network's neighbours.

    others: cells of no class.
    """
    folds = []
    for k, (fold_train, held_out) in enumerate(fold_rows(train, validation, config)):
        network = load_checkpoint(fold_path(run, k) / BEST, config)
        neighbours = find_neighbours(network, fold_train, seen_others(others, held_out, config), config)
        folds.append(score_held_out(network, held_out, neighbours, config))
    weights = [
        fold.weights / fold.weights.sum() if config.select_on == "laboratories" else fold.weights
        for fold in folds
    ]
    return HeldOut(
        [row for fold in folds for row in fold.rows],
        np.concatenate([fold.logits for fold in folds]),
        np.concatenate([fold.ood_scores for fold in folds]),
        np.concatenate([fold.labels for fold in folds]),
        np.concatenate(weights),
    )


def find_neighbours(
    network: Network, train: Sequence[Row], others: Sequence[Row], config: TrainConfig
) -> Neighbours:
    """Return the OOD score's reference cells: the network's features of balanced samples."""

    def bank(rows: Sequence[Row]) -> Bank:
        chosen = balanced_sample(rows, BANK)
        groups = len({(row.laboratory, row.label) for row in chosen})
        return bank_of(score(network, evaluation_loader(chosen, config)).features, groups)

    return neighbours_of(bank(train), bank(others) if others else None)


def balanced_sample(rows: Sequence[Row], n: int) -> list[Row]:
    """Return up to n rows per class, or other type, and laboratory, spread over the photos."""
    chosen: list[Row] = []
    for laboratory in sorted({row.laboratory for row in rows}):
        for label in sorted({row.label for row in rows}):
            group = [row for row in rows if (row.laboratory, row.label) == (laboratory, label)]
            per_source = 1
            while len(picked := thin(group, per_source, 0)) < min(n, len(group)):
                per_source *= 2
            chosen += [picked[i * len(picked) // n] for i in range(n)] if len(picked) > n else picked
    return chosen
