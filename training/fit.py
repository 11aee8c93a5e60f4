"""One training run: manifest and recipe in, a folder with checkpoints and a log out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from app.engine.bundle import CLASSES
from training.config import TrainConfig, save_config
from training.data import Row, fingerprint
from training.errors import RecipeError
from training.folds import fit_folds
from training.module import LAST
from training.patches import cut_patches
from training.ranks import do_once, meet
from training.rows import choose_rows
from training.trainer import fit_once


def fit(rows: Sequence[Row], config: TrainConfig, run: Path, *, resume: bool = False) -> Path:
    """Train and return the best checkpoint; `resume` goes on from the run's last one."""
    begun = any(run.rglob(LAST))
    if resume and not begun:
        raise RecipeError(f"{run} has no {LAST}: nothing to resume")
    if not resume and begun:
        raise RecipeError(
            f"{run} already holds a run: `--resume` goes on with it, `--run` names another folder"
        )
    train, validation = choose_rows(rows, config)
    processes = meet(config)

    def prepare() -> None:
        run.mkdir(parents=True, exist_ok=True)
        save_config(config, run / "config.json")
        save_facts(train, validation, run / "data.json")
        cut_patches(train, config, run)

    do_once(processes, prepare)
    patches = cut_patches(train, config, run)
    if config.select_on == "folds":
        return fit_folds(train, validation, patches, config, run, processes)
    return fit_once(train, validation, patches, config, run)


def save_facts(train: Sequence[Row], validation: Sequence[Row], path: Path) -> None:
    """What the run saw, for the bundle and its model card."""

    def facts(rows: Sequence[Row]) -> dict[str, object]:
        return {
            "archives": sorted({Path(row.archive).name for row in rows}),
            "images": {label: sum(row.label == label for row in rows) for label in CLASSES},
            "sources": {label: len({row.source for row in rows if row.label == label}) for label in CLASSES},
            "fingerprint": fingerprint(rows),
        }

    path.write_text(json.dumps({"train": facts(train), "validation": facts(validation)}, indent=2) + "\n")
