"""One training run: manifest and recipe in, a folder with checkpoints and a log out."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from app.vision.torch import Network
from training.config import TrainConfig, save_config
from training.data import CLASSES, Row, fingerprint
from training.errors import DataError, RecipeError
from training.initial import start_from
from training.loading import evaluation_loader, training_loader
from training.module import Finetuning
from training.split import hold_out, thin

UNFOLDING_FILES = 512  # for the channel statistics of a start with folded batch norm
BEST, LAST = "best.ckpt", "last.ckpt"


def fit(rows: Sequence[Row], config: TrainConfig, run: Path, *, resume: bool = False) -> Path:
    """Train and return the best checkpoint; `resume` goes on from the run's last one."""
    last = run / LAST
    if resume and not last.is_file():
        raise RecipeError(f"{last} does not exist: nothing to resume")
    if not resume and last.is_file():
        raise RecipeError(
            f"{run} already holds a run: `--resume` goes on with it, `--run` names another folder"
        )
    seed_everything(config.seed, workers=True, verbose=False)
    train, validation = choose_rows(rows, config)
    run.mkdir(parents=True, exist_ok=True)
    save_config(config, run / "config.json")
    save_facts(train, validation, run / "data.json")
    trainer = build_trainer(config, run)
    module = Finetuning(Network(len(CLASSES), config.preprocessing), config)
    if not resume:
        few = random.Random(config.seed).sample(train, min(len(train), UNFOLDING_FILES))
        fresh = start_from(module.network, config.initial, evaluation_loader(few, config))
        print(f"start: {config.initial}; {len(fresh)} tensors start at random")
    try:
        trainer.fit(
            module,
            training_loader(train, config),
            evaluation_loader(validation, config),
            ckpt_path=last if resume else None,
            weights_only=False if resume else None,
        )
    except SystemExit as end:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from end
    return run / BEST


def choose_rows(rows: Sequence[Row], config: TrainConfig) -> tuple[list[Row], list[Row]]:
    """Rows to fit and rows to select on."""
    train = [row for row in rows if row.split == "train"]
    if config.select_on == "holdout":
        train, validation = hold_out(train, config.holdout, config.seed)
        validation = thin(validation, config.holdout_files, 0) if config.holdout_files else validation
        first = rows[0].archive  # scored on the first archive alone: the others only help
        validation = [row for row in validation if row.archive == first]
    else:
        validation = [row for row in rows if row.split == config.select_on]
    for name, part in (("train", train), ("validation", validation)):
        if missing := sorted(set(CLASSES) - {row.label for row in part}):
            raise DataError(f"no {name} pictures of {', '.join(missing)}; check the manifest's split column")
    return train, validation


def build_trainer(config: TrainConfig, run: Path) -> Trainer:
    better = "min" if config.monitor == "val_loss" else "max"
    callbacks: list[Callback] = [
        ModelCheckpoint(run, "best", config.monitor, mode=better, enable_version_counter=False),
        # One of its own: `save_last` beside a monitor is written only when the monitor improves.
        ModelCheckpoint(run, "last", enable_version_counter=False),
        Progress(config.batch),
    ]
    if config.patience:
        callbacks.append(EarlyStopping("val_loss", patience=config.patience))
    if config.average:
        callbacks.append(EMAWeightAveraging(decay=config.average))
    return Trainer(
        max_epochs=config.epochs,
        precision=config.precision,  # type: ignore[arg-type]
        callbacks=callbacks,
        logger=CSVLogger(run, "log"),
        deterministic="warn",
        benchmark=torch.cuda.is_available(),
        log_every_n_steps=1,
        enable_model_summary=False,
    )


class Progress(TQDMProgressBar):
    """Adds images a second to Lightning's bar, which has steps a second and the time left."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def get_metrics(
        self, trainer: Trainer, pl_module: object
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)  # type: ignore[arg-type]
        metrics.pop("v_num", None)
        # Lightning moves the bar by hand, so that tqdm has no rate of its own.
        bar = self.train_progress_bar
        images, elapsed = bar.n * self.batch * trainer.world_size, bar.format_dict["elapsed"]
        return {"images/s": round(images / elapsed, 1), **metrics} if elapsed else metrics


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
