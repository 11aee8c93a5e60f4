"""Logits, OOD scores and styles of validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from app.engine.classifier import Bank, Neighbours
from app.engine.laboratories import Styles, describe_all
from training.calibration import bank_of, neighbours_of, styles_of
from training.config import TrainConfig
from training.data import Row
from training.loading import Batch, evaluation_loader
from training.module import BEST, load_checkpoint
from training.network import Network
from training.rows import fold_path, fold_rows, seen_others
from training.split import thin

BANK = 150  # training cells per class and laboratory in the reference set of the OOD score
FAMILIAR = 0.95  # share of the training cells that look like their laboratory's

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """A network's output on n images: logits [n, classes], features [n, 512], labels [n], weights [n].

    styles [n, 30]: descriptions of the framed images (`app.imaging.style`).
    """

    logits: Floats
    features: Floats
    labels: NDArray[np.int64]
    weights: Floats
    styles: Floats


@dataclass(frozen=True)
class References:
    """What a network's training cells say of another one.

    distance: of the training cells from their nearest laboratory's style, a share `FAMILIAR` is at most so
    far.
    """

    neighbours: Neighbours
    styles: Styles
    distance: float


@dataclass(frozen=True)
class HeldOut:
    """Scores of n images: logits [n, classes], the rest [n].

    weights: equal for each class, photo and file of a fold; with laboratories, their sums are equal too.
    familiar: whether the image looks like those of a laboratory that its network was trained on.
    """

    rows: Sequence[Row]
    logits: Floats
    ood_scores: Floats
    labels: NDArray[np.int64]
    weights: Floats
    familiar: NDArray[np.bool_]


@torch.no_grad()
def score(network: Network, loader: DataLoader[Batch]) -> Scored:
    """Run the network over all batches of the loader."""
    network = network.to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU
    batches = [
        (*network(pixels)[:2], labels, weights.float(), torch.from_numpy(describe_all(pixels.numpy())))
        for pixels, labels, weights in loader
    ]
    return Scored(*(torch.cat(column).numpy() for column in zip(*batches, strict=True)))


def score_rows(network: Network, rows: Sequence[Row], references: References, config: TrainConfig) -> HeldOut:
    return judge_rows(rows, score(network, evaluation_loader(rows, config)), references)


def judge_rows(rows: Sequence[Row], scored: Scored, references: References) -> HeldOut:
    """Return the scores of `rows` beside a network's references."""
    return HeldOut(
        rows,
        scored.logits,
        references.neighbours.score(scored.features),
        scored.labels,
        scored.weights,
        references.styles.distances(scored.styles) <= references.distance,
    )


def score_folds(
    run: Path, train: Sequence[Row], validation: Sequence[Row], others: Sequence[Row], config: TrainConfig
) -> HeldOut:
    """Score each photo with the network that was trained without it, and with that network's neighbours.

    others: cells of no class.
    """
    folds = []
    for k, (fold_train, held_out) in enumerate(fold_rows(train, validation, config)):
        network = load_checkpoint(fold_path(run, k) / BEST, config)
        references = find_references(network, fold_train, seen_others(others, held_out, config), config)
        folds.append(score_rows(network, held_out, references, config))
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
        np.concatenate([fold.familiar for fold in folds]),
    )


def find_references(
    network: Network, train: Sequence[Row], others: Sequence[Row], config: TrainConfig
) -> References:
    """Return the OOD score's reference cells and the laboratories' styles, from balanced samples."""

    def bank(rows: Sequence[Row], scored: Scored) -> Bank:
        return bank_of(scored.features, len({(row.laboratory, row.label) for row in rows}))

    known = balanced_sample(train, BANK)
    scored = score(network, evaluation_loader(known, config))
    counterexamples = balanced_sample(others, BANK)
    neighbours = neighbours_of(
        bank(known, scored),
        bank(counterexamples, score(network, evaluation_loader(counterexamples, config))) if others else None,
    )
    styles = styles_of(scored.styles, [row.laboratory for row in known])
    distance = float(np.quantile(styles.distances(scored.styles), FAMILIAR))
    return References(neighbours, styles, distance)


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
