"""The training and validation rows of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.engine.bundle import CLASSES
from training.config import TrainConfig
from training.data import Row
from training.errors import DataError
from training.split import hold_out, into_folds, thin


def choose_rows(rows: Sequence[Row], config: TrainConfig) -> tuple[list[Row], list[Row]]:
    """Return training and validation rows; raise DataError if either lacks a class.

    With folds, both have the same photos and `fold_rows` separates them.
    """
    train = [row for row in rows if row.split == "train"]
    if config.select_on in ("holdout", "folds"):
        validation = [row for row in train if row.certain]
        if config.select_on == "holdout":
            train, validation = hold_out(train, config.holdout, config.seed)
        validation = thin(validation, config.holdout_files, 0) if config.holdout_files else validation
        first = rows[0].archive  # the others are for training only
        validation = [row for row in validation if row.archive == first]
        train = [row for row in train if row.certain]
    else:
        validation = [row for row in rows if row.split == config.select_on]
    if config.files:
        train = thin(train, config.files, config.seed)
    for name, chosen in (("train", train), ("validation", validation)):
        if missing := sorted(set(CLASSES) - {row.label for row in chosen}):
            raise DataError(f"no {name} images of {', '.join(missing)}; check the manifest's column `split`")
    return train, validation


def fold_rows(
    train: Sequence[Row], validation: Sequence[Row], config: TrainConfig
) -> list[tuple[list[Row], list[Row]]]:
    """Return for each fold its training rows and the validation rows of the photos that it holds out."""
    fold = into_folds(validation, config.folds, config.seed)
    return [
        (
            [row for row in train if fold.get(row.source) != k],
            [row for row in validation if fold[row.source] == k],
        )
        for k in range(config.folds)
    ]


def shared_rows(train: Sequence[Row], validation: Sequence[Row]) -> list[Row]:
    """Return the training rows of archives without validation rows, which every fold may train on."""
    validated = {row.archive for row in validation}
    return [row for row in train if row.archive not in validated]


def fold_path(run: Path, k: int) -> Path:
    """Return the folder of fold k, from 0; its name counts from 1."""
    return run / f"fold-{k + 1}"
