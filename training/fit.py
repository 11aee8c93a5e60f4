"""One training run: from manifest and recipe to a folder with checkpoints and a log."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.engine.bundle import CLASSES
from training.config import TrainConfig, save_config
from training.data import Row, classes_of, fingerprint
from training.errors import DataError, RecipeError
from training.folds import fit_folds
from training.initial import check_initial
from training.module import LAST
from training.patches import cut_patches
from training.ranks import do_once, start_processes
from training.rows import FOLDED, choose_rows, other_cells, outliers
from training.selection import check_selection, selections
from training.trainer import fit_once

FACTS = "data.json"  # in a run: which data it uses


def fit(rows: Sequence[Row], config: TrainConfig, run: Path, *, resume: bool = False) -> Path:
    """Train and return the path of the best checkpoint; `resume` continues from the run's last one.

    Raise RecipeError if `run` holds a run already, or with `resume` if it holds none; before any work, also
    DataError or RecipeError if one of its networks has too few images or lacks its initial weights.
    """
    begun = any(run.rglob(LAST))
    if resume and not begun:
        raise RecipeError(f"{run} has no {LAST}: nothing to resume")
    if not resume and begun:
        raise RecipeError(
            f"{run} already holds a run: continue it with `--resume`, or choose another folder with `--run`"
        )
    train, validation = choose_rows(rows, config)
    others = outliers(rows, config)
    check_selection(train, validation, others, config)
    count = sum(1 for _ in selections(train, validation, others, config))
    if not resume:
        check_initial(config.initial)
        check_initial(config.initial_elsewhere)
    elif (run / FACTS).is_file():
        read_facts(run, train, validation)
    processes = start_processes(config)

    def prepare() -> None:
        run.mkdir(parents=True, exist_ok=True)
        save_config(config, run / "config.json")
        save_facts(train, validation, other_cells(rows), run / FACTS)
        cut_patches([*train, *others], config, run)

    do_once(processes, prepare)
    patches = cut_patches([*train, *others], config, run)
    if processes.is_global_zero:
        epochs = f"{config.epochs} epochs" if config.epochs > 1 else "1 epoch"
        print(f"networks to train, one after another: {count}, of at most {epochs}")
    if config.select_on in FOLDED:
        best = fit_folds(train, validation, others, patches, config, run, processes)
    else:
        best = fit_once([*train, *others], validation, patches, config, run)
    if not best.is_file():
        raise RecipeError(f"the training ended without writing {best}: train longer, or from another seed")
    return best


def save_facts(train: Sequence[Row], validation: Sequence[Row], others: Sequence[Row], path: Path) -> None:
    """Write which data the run uses, for the bundle and its model card."""

    classes = classes_of(train)

    def facts(rows: Sequence[Row]) -> dict[str, object]:
        return {
            "archives": sorted({Path(row.archive).name for row in rows}),
            "images": {label: sum(row.label == label for row in rows) for label in classes},
            "sources": {label: len({row.source for row in rows if row.label == label}) for label in classes},
            "fingerprint": fingerprint(rows),
        }

    table: dict[str, object] = {"classes": classes, "train": facts(train), "validation": facts(validation)}
    table["laboratories"] = {Path(row.archive).name: row.laboratory for row in (*train, *others)}
    if others:
        table["others"] = {
            "archives": sorted({Path(row.archive).name for row in others}),
            "images": Counter(row.label for row in others),
            "fingerprint": fingerprint(others),
        }
    path.write_text(json.dumps(table, indent=2) + "\n")


def read_facts(run: Path, train: Sequence[Row], validation: Sequence[Row]) -> dict[str, Any]:
    """Return what `save_facts` wrote. Raise DataError if it is missing, or of other images than these."""
    path = run / FACTS
    try:
        table: dict[str, Any] = json.loads(path.read_text())
        same = [table[part]["fingerprint"] for part in ("train", "validation")]
        classes = tuple(table.get("classes", CLASSES))  # older runs had no others
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; run `leuko-train fit` first") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} was not written by `leuko-train fit` ({error!r}); train again") from error
    if same != [fingerprint(train), fingerprint(validation)]:
        raise DataError(
            f"the manifest does not have the images that {run} was trained on: give its own with --manifest"
        )
    if classes != classes_of(train):
        raise DataError(
            f"{run} was trained with the classes {', '.join(classes)}, the manifest has"
            f" {', '.join(classes_of(train))}: give its own with --manifest"
        )
    return table
