"""Data loaders: from manifest rows to batches of pixels, labels and weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, WeightedRandomSampler

from app.imaging.framing import frame_cell
from training.config import TrainConfig
from training.data import Row
from training.errors import DataError
from training.images import ImageArchive
from training.patches import Patches
from training.rows import mix_problem
from training.verified import read_image

OUTLIER = -1  # class index of a cell of no class
Batch = tuple[Tensor, Tensor, Tensor]  # pixels uint8 [n, side, side, 3], labels [n], weights [n]


class FramedCells(Dataset[Batch]):
    """Images framed as in the service: pixels [size, size, 3], class index, weight in the scores."""

    def __init__(self, rows: Sequence[Row], config: TrainConfig) -> None:
        self.rows = rows
        self.preprocessing = config.preprocessing
        self.weights = balanced_weights(rows)
        self.archives = {archive: ImageArchive(Path(archive)) for archive in {row.archive for row in rows}}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        row = self.rows[index]
        image = read_image(row, self.archives[row.archive].read(row.path))
        pixels = torch.from_numpy(frame_cell(image, self.preprocessing).pixels.copy())
        return pixels, torch.tensor(label_index(row)), torch.tensor(self.weights[index])


class TrainingPatches(Dataset[Batch]):
    """Patches, which the training step augments and crops: patch, class index, weight in the scores."""

    def __init__(self, rows: Sequence[Row], patches: Patches) -> None:
        self.rows = rows
        self.patches = patches
        self.weights = balanced_weights(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        row = self.rows[index]
        patch = torch.from_numpy(self.patches[row].copy())
        return patch, torch.tensor(label_index(row)), torch.tensor(self.weights[index])


def label_index(row: Row) -> int:
    return row.classes.index(row.label) if row.known else OUTLIER


def training_loader(
    rows: Sequence[Row], patches: Patches, config: TrainConfig, rank: int = 0, world: int = 1
) -> DataLoader[Batch]:
    """Return a loader of process `rank`'s share of each batch.

    All processes draw the same sample with the same seed and take disjoint shares of it.
    """
    samples = config.samples or len(rows)
    sampler: Sampler[int] = RandomSampler(rows, num_samples=samples)
    if config.mix or config.outliers:
        sampler = WeightedRandomSampler(sample_weights(rows, config), samples)
    if world > 1:
        # Lightning's own replacement of a RandomSampler would ignore `samples`.
        sampler = DistributedSamplerWrapper(sampler, world, rank, shuffle=False, drop_last=True)
    cuda = torch.cuda.is_available()
    return DataLoader(
        TrainingPatches(rows, patches),
        batch_size=config.batch // world,
        sampler=sampler,
        drop_last=True,
        pin_memory=cuda,
        # Without a GPU, workers would compete with the network for the cores.
        num_workers=config.workers if cuda else 0,
        persistent_workers=cuda and config.workers > 0,
    )


def evaluation_loader(rows: Sequence[Row], config: TrainConfig) -> DataLoader[Batch]:
    return DataLoader(
        FramedCells(rows, config),
        batch_size=2 * config.batch,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )


def balanced_weights(rows: Sequence[Row]) -> list[float]:
    """Return weights that are equal for each class, within it for each photo, within that for each file.

    Their mean is 1.
    """
    files = Counter((row.label, row.source) for row in rows)
    photos = Counter(label for label, _ in files)
    share = len(rows) / len(photos)
    return [share / (photos[row.label] * files[row.label, row.source]) for row in rows]


def sample_weights(rows: Sequence[Row], config: TrainConfig) -> list[float]:
    """Return how often each row is drawn: cells by the recipe's `mix`, outliers by type, with their share."""
    known = [row for row in rows if row.known]
    others = [row for row in rows if not row.known]
    weights = iter(mixed_weights(known, config.mix) if config.mix else [1 / len(known)] * len(known))
    mass = sum(config.mix.values()) or 1.0
    share = config.outliers / (1 - config.outliers) * mass / max(1, len(others))
    outlier_weights = iter([share * weight for weight in balanced_weights(others)] if others else [])
    return [next(weights if row.known else outlier_weights) for row in rows]


def mixed_weights(rows: Sequence[Row], mix: Mapping[str, float]) -> list[float]:
    """Return `balanced_weights` within each laboratory, scaled to the shares in `mix` (laboratory → share).

    Raise DataError if the manifest's laboratories are not those of the mix.
    """
    names = [row.laboratory for row in rows]
    for problem in mix_problem(rows, mix):
        raise DataError(problem)
    weights = [0.0] * len(rows)
    for name, share in mix.items():
        members = [i for i, each in enumerate(names) if each == name]
        balanced = balanced_weights([rows[i] for i in members])
        for i, weight in zip(members, balanced, strict=True):
            weights[i] = share * weight / len(members)
    return weights
