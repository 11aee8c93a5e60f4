"""Which rows of a manifest a run fits and which it is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.engine.bundle import CLASSES
from training.config import TrainConfig
from training.data import Row
from training.errors import DataError
from training.split import hold_out, into_folds, thin


def choose_rows(rows: Sequence[Row], config: TrainConfig) -> tuple[list[Row], list[Row]]:
    """Rows to fit and rows to select on; with folds these are of the same photos, each judged unseen."""
    train = [row for row in rows if row.split == "train"]
    if config.select_on in ("holdout", "folds"):
        validation = [row for row in train if row.certain]
        if config.select_on == "holdout":
            train, validation = hold_out(train, config.holdout, config.seed)
        validation = thin(validation, config.holdout_files, 0) if config.holdout_files else validation
        first = rows[0].archive  # scored on the first archive alone: the others only help
        validation = [row for row in validation if row.archive == first]
        train = [row for row in train if row.certain]
    else:
        validation = [row for row in rows if row.split == config.select_on]
    if config.files:
        train = thin(train, config.files, config.seed)
    for name, part in (("train", train), ("validation", validation)):
        if missing := sorted(set(CLASSES) - {row.label for row in part}):
            raise DataError(f"no {name} pictures of {', '.join(missing)}; check the manifest's split column")
    return train, validation


def fold_rows(
    train: Sequence[Row], validation: Sequence[Row], config: TrainConfig
) -> list[tuple[list[Row], list[Row]]]:
    """For each fold, the rows to fit and the rows of the photos that it holds out."""
    fold = into_folds(validation, config.folds, config.seed)
    return [
        (
            [row for row in train if fold.get(row.source) != k],
            [row for row in validation if fold[row.source] == k],
        )
        for k in range(config.folds)
    ]


def shared_rows(train: Sequence[Row], validation: Sequence[Row]) -> list[Row]:
    """Rows that no fold is judged on: those of the other archives."""
    judged = {row.archive for row in validation}
    return [row for row in train if row.archive not in judged]


def fold_path(run: Path, k: int) -> Path:
    return run / f"fold-{k + 1}"
