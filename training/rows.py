"""The training and validation rows of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.engine.bundle import CLASSES
from training.config import TrainConfig
from training.data import Row
from training.errors import DataError
from training.split import hold_out, into_folds, thin

FOLDED = ("folds", "laboratories")  # values of `select_on` that train a network without each part


def choose_rows(rows: Sequence[Row], config: TrainConfig) -> tuple[list[Row], list[Row]]:
    """Return training and validation rows of the classes; raise DataError if either lacks a class.

    With folds or laboratories, both have the same photos and `fold_rows` separates them.
    """
    rows = [row for row in rows if row.known]
    train = [row for row in rows if row.split == "train"]
    if config.select_on in ("holdout", *FOLDED):
        validation = [row for row in train if row.certain]
        if config.select_on == "holdout":
            train, validation = hold_out(train, config.holdout, config.seed)
        validation = thin(validation, config.holdout_files, 0) if config.holdout_files else validation
        if config.select_on != "laboratories":
            first = rows[0].laboratory  # the others are for training only
            validation = [row for row in validation if row.laboratory == first]
        train = [row for row in train if row.certain]
    else:
        validation = [row for row in rows if row.split == config.select_on]
    if config.files:
        train = thin(train, config.files, config.seed)
    for name, chosen in (("train", train), ("validation", validation)):
        if missing := sorted(set(CLASSES) - {row.label for row in chosen}):
            raise DataError(f"no {name} images of {', '.join(missing)}; check the manifest's column `split`")
    return train, validation


def other_cells(rows: Sequence[Row]) -> list[Row]:
    """Return the training rows of cells of no class, the OOD score's counterexamples."""
    return [row for row in rows if not row.known and row.split == "train"]


def seen_others(others: Sequence[Row], held_out: Sequence[Row], config: TrainConfig) -> list[Row]:
    """Return the cells of no class that the network of a fold may see: none from a laboratory left out."""
    if config.select_on != "laboratories":
        return list(others)
    left_out = {row.laboratory for row in held_out}
    return [row for row in others if row.laboratory not in left_out]


def outliers(rows: Sequence[Row], config: TrainConfig) -> list[Row]:
    """Return the cells of no class to train on; none if the recipe wants none.

    Raise DataError if it does and there is none.
    """
    if not config.outliers:
        return []
    found = other_cells(rows)
    if not found:
        raise DataError(
            f"outliers = {config.outliers} needs cells of no class: create the manifest with "
            "`leuko-train data --others FOLDER`, or set outliers to 0"
        )
    return found


def fold_rows(
    train: Sequence[Row], validation: Sequence[Row], config: TrainConfig
) -> list[tuple[list[Row], list[Row]]]:
    """Return for each fold its training rows and the validation rows that it holds out.

    With folds, these are photos of the first laboratory; with laboratories, all of one, in the order of their
    names. Raise DataError if there are too few.
    """
    if config.select_on == "laboratories":
        laboratories = sorted({row.laboratory for row in validation})
        if len(laboratories) < 2:
            raise DataError("leaving one laboratory out needs the archives of at least two in the manifest")
        return [
            (
                [row for row in train if row.laboratory != laboratory],
                [row for row in validation if row.laboratory == laboratory],
            )
            for laboratory in laboratories
        ]
    fold = into_folds(validation, config.folds, config.seed)
    return [
        (
            [row for row in train if fold.get(row.source) != k],
            [row for row in validation if fold[row.source] == k],
        )
        for k in range(config.folds)
    ]


def shared_rows(train: Sequence[Row], validation: Sequence[Row]) -> list[Row]:
    """Return the training rows of laboratories without validation rows, which every fold may train on."""
    validated = {row.laboratory for row in validation}
    return [row for row in train if row.laboratory not in validated]


def fold_path(run: Path, k: int) -> Path:
    """Return the folder of fold k, from 0; its name counts from 1."""
    return run / f"fold-{k + 1}"


def fold_paths(run: Path) -> list[Path]:
    """Return the folders of the run's folds, in their order."""
    return sorted(run.glob("fold-*"), key=lambda path: int(path.name.removeprefix("fold-")))
