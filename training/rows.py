"""The training and validation rows of a run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.config import TrainConfig
from training.data import Row, classes_of
from training.errors import DataError
from training.split import check_sources, hold_out, into_folds, source_labels, thin

ADVICE = ": add photos or slides, {} of each class"
FOLDED = ("folds", "laboratories")  # values of `select_on` that train a network without each part


def choose_rows(rows: Sequence[Row], config: TrainConfig) -> tuple[list[Row], list[Row]]:
    """Return training and validation rows of the classes; raise DataError if either lacks a class.

    With folds or laboratories, both have the same photos and `fold_rows` separates them.
    """
    classes = classes_of(rows)
    rows = [row for row in rows if row.known]
    if not rows:
        raise DataError(f"the manifest has no images of {', '.join(classes)}")
    train = [row for row in rows if row.split == "train"]
    if config.select_on in ("holdout", *FOLDED):
        validation = [row for row in train if row.certain]
        if config.select_on == "holdout":
            certain = [row for row in train if row.certain]
            check_sources(certain, 2, "to hold photos out", ADVICE.format(2))
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
    if missing := sorted(set(classes) - {row.label for row in train}):
        raise DataError(
            f"no train images of {', '.join(missing)}: no such row has split train and a certain source"
        )
    if missing := sorted(set(classes) - {row.label for row in validation}):
        raise DataError(f"no validation images of {', '.join(missing)}: {advice(config)}")
    return train, validation


def advice(config: TrainConfig) -> str:
    """Say where the missing images for validation may come from."""
    if config.select_on in ("holdout", *FOLDED):
        return "the first archive needs training images of each class whose source is certain"
    ratio = "80:20" if config.select_on == "test" else "80:10:10"
    return (
        f"the recipe selects on the split {config.select_on}; create the manifest with `leuko-train data"
        f" ARCHIVE --split {ratio}`, or hold training photos out with --set 'select_on=\"holdout\"'"
    )


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
            raise DataError(
                "leaving one laboratory out needs the archives of at least two in the manifest: name all of"
                " them in one `leuko-train data FIRST=a.zip SECOND=b.zip`"
            )
        return [
            (
                [row for row in train if row.laboratory != laboratory],
                [row for row in validation if row.laboratory == laboratory],
            )
            for laboratory in laboratories
        ]
    fewest = min(Counter(source_labels(validation).values()).values())
    fewer = f" (or --set folds={fewest})" if fewest > 1 else ""
    division = into_folds(validation, config.folds, config.seed, f"{fewer}{ADVICE.format(config.folds)}")
    return [
        (
            [row for row in train if division.part(row) != k],
            [row for row in validation if division.part(row) == k],
        )
        for k in range(config.folds)
    ]


def shared_rows(train: Sequence[Row], validation: Sequence[Row]) -> list[Row]:
    """Return the training rows of laboratories without validation rows, which every fold may train on."""
    validated = {row.laboratory for row in validation}
    return [row for row in train if row.laboratory not in validated]


def mix_of(rows: Sequence[Row], config: TrainConfig) -> dict[str, float]:
    """Return the recipe's shares of the laboratories that the rows come from."""
    present = {row.laboratory for row in rows}
    return {name: share for name, share in config.mix.items() if name in present}


def mix_problem(rows: Sequence[Row], mix: Mapping[str, float]) -> list[str]:
    """Return in words, if so, that the rows' laboratories are not those of the mix."""
    names = sorted({row.laboratory for row in rows})
    if not mix or names == sorted(mix):
        return []
    shares = ", ".join(f"{json.dumps(name, ensure_ascii=False)} = 1" for name in names)
    return [
        f"the recipe mixes {', '.join(sorted(mix))}, the manifest has {', '.join(names)}: create the manifest"
        f" from those archives, or set shares of these, as with --set 'mix={{ {shares} }}'"
    ]


def fold_path(run: Path, k: int) -> Path:
    """Return the folder of fold k, from 0; its name counts from 1."""
    return run / f"fold-{k + 1}"


def fold_paths(run: Path) -> list[Path]:
    """Return the folders of the run's folds, in their order."""
    return sorted(run.glob("fold-*"), key=lambda path: int(path.name.removeprefix("fold-")))
