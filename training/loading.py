"""Manifest rows → batches of pixels, labels and weights."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, WeightedRandomSampler

from app.vision.decode import decode
from training.augment import evaluation_pixels, training_pixels
from training.config import TrainConfig
from training.data import CLASSES, Row
from training.errors import DataError
from training.pictures import Pictures

Batch = tuple[Tensor, Tensor, Tensor]  # pixels [n, size, size, 3], labels [n], weights [n]


class Cells(Dataset[Batch]):
    """Row i → pixels uint8 [size, size, 3], class index, weight of the row in a score."""

    def __init__(self, rows: Sequence[Row], config: TrainConfig, *, augmented: bool) -> None:
        self.rows = rows
        self.config = config
        self.augmented = augmented
        self.weights = balanced_weights(rows)
        self.pictures = {archive: Pictures(Path(archive)) for archive in {row.archive for row in rows}}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        row = self.rows[index]
        image = decode(self.pictures[row.archive].read(row.path))
        if self.augmented:
            # torch seeds each worker anew each epoch; drawing from it keeps runs repeatable.
            rng = random.Random(int(torch.randint(2**31, ()).item()))
            pixels = training_pixels(image, self.config.preprocessing, self.config.augmentation, rng)
        else:
            pixels = evaluation_pixels(image, self.config.preprocessing)
        label, weight = CLASSES.index(row.label), self.weights[index]
        return torch.from_numpy(pixels.copy()), torch.tensor(label), torch.tensor(weight)


def training_loader(rows: Sequence[Row], config: TrainConfig) -> DataLoader[Batch]:
    cells = Cells(rows, config, augmented=True)
    samples = config.samples or len(rows)
    sampler: Sampler[int] = RandomSampler(cells, num_samples=samples)
    if config.mix:
        sampler = WeightedRandomSampler(mixed_weights(rows, config.mix), samples)
    return DataLoader(
        cells,
        batch_size=config.batch,
        sampler=sampler,
        drop_last=True,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def evaluation_loader(rows: Sequence[Row], config: TrainConfig) -> DataLoader[Batch]:
    cells = Cells(rows, config, augmented=False)
    return DataLoader(
        cells, batch_size=2 * config.batch, num_workers=config.workers, persistent_workers=config.workers > 0
    )


def balanced_weights(rows: Sequence[Row]) -> list[float]:
    """Equal weight to each class, within it to each photo, within that to each file; the mean is 1."""
    files = Counter((row.label, row.source) for row in rows)
    photos = Counter(label for label, _ in files)
    share = len(rows) / len(photos)
    return [share / (photos[row.label] * files[row.label, row.source]) for row in rows]


def mixed_weights(rows: Sequence[Row], mix: Mapping[str, float]) -> list[float]:
    """As `balanced_weights` within each archive, the archives weighing as `mix` (stem → share) says."""
    stems = [Path(row.archive).stem for row in rows]
    if set(stems) != set(mix):
        raise DataError(
            f"the recipe mixes {', '.join(sorted(mix))}, the manifest has {', '.join(sorted(set(stems)))}: "
            "make the manifest from those archives, or say `--set 'mix={…}'`"
        )
    weights = [0.0] * len(rows)
    for stem, share in mix.items():
        members = [i for i, s in enumerate(stems) if s == stem]
        balanced = balanced_weights([rows[i] for i in members])
        for i, weight in zip(members, balanced, strict=True):
            weights[i] = share * weight / len(members)
    return weights
