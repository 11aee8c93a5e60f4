"""Training of one network: Lightning's trainer, its checkpoints and its progress bar."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch.optim.swa_utils import get_ema_multi_avg_fn

from app.printable import printable
from training.config import TrainConfig
from training.data import Row, classes_of
from training.durations import duration
from training.initial import start_from
from training.loading import evaluation_loader, training_loader
from training.module import BEST, LAST, Finetuning
from training.network import Network
from training.patches import Patches
from training.ranks import device_counts

UNFOLDING_FILES = 512  # images for the channel statistics of initial weights with folded batch norm


def fit_once(
    train: Sequence[Row], validation: Sequence[Row], patches: Patches, config: TrainConfig, run: Path
) -> Path:
    """Train one network and return the path of its best checkpoint.

    Continue from the run's last checkpoint if it exists, else start from `config.initial`.
    """
    seed_everything(config.seed, workers=True, verbose=False)
    last = run / LAST
    trainer = build_trainer(config, run)
    module = Finetuning(Network(len(classes_of(train)), config.preprocessing), config)
    if not last.is_file() and trainer.is_global_zero:  # Lightning broadcasts its weights
        sample = random.Random(config.seed).sample(train, min(len(train), UNFOLDING_FILES))
        random_tensors = start_from(module.network, config.initial, evaluation_loader(sample, config))
        print(printable(f"initial weights: {config.initial}; {len(random_tensors)} tensors are random"))
    module.draws = torch.get_rng_state()
    try:
        trainer.fit(
            module,
            training_loader(train, patches, config, trainer.global_rank, trainer.world_size),
            evaluation_loader(validation, config) if validation else None,
            ckpt_path=last if last.is_file() else None,
            weights_only=True,  # checkpoints are read without pickle
        )
    except SystemExit as end:  # Lightning turns Ctrl-C into it
        raise KeyboardInterrupt from end
    return run / BEST


def build_trainer(config: TrainConfig, run: Path) -> Trainer:
    better = "min" if config.monitor == "val_loss" else "max"
    monitor = None if config.monitor == "last" else config.monitor
    # Saved after each epoch, validated or not; without a monitor the last epoch is kept.
    options: Any = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    callbacks: list[Callback] = [
        ModelCheckpoint(run, "best", monitor, mode=better, **options),
        # A second callback, since `save_last` with a monitor saves only when the monitor improves.
        ModelCheckpoint(run, "last", **options),
        Progress(config.batch),
        Expectation(),
    ]
    if config.patience:
        callbacks.append(EarlyStopping("val_loss", patience=config.patience))
    if config.average:
        average = get_ema_multi_avg_fn(config.average)  # type: ignore[no-untyped-call]
        callbacks.append(WeightAveraging(multi_avg_fn=average))
    counts = device_counts()
    several = counts["devices"] * counts.get("num_nodes", 1) > 1
    return Trainer(
        **counts,
        strategy="ddp" if several else "auto",
        sync_batchnorm=several and torch.cuda.is_available(),
        max_epochs=config.epochs,
        precision=config.precision,
        callbacks=callbacks,
        logger=CSVLogger(run, "log"),
        deterministic="warn",
        benchmark=torch.cuda.is_available(),
        check_val_every_n_epoch=config.epochs if config.monitor == "last" else 1,
        log_every_n_steps=1,
        enable_model_summary=False,
    )


class Expectation(Callback):
    """Says after a few steps about how long the rest takes, also where no progress bar is shown."""

    FIRST, LAST = 5, 15  # steps that are timed; the first ones are slower

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.is_global_zero and trainer.global_step == self.FIRST:
            self.started = time.monotonic()
        elif trainer.is_global_zero and trainer.global_step == self.LAST and hasattr(self, "started"):
            seconds = (time.monotonic() - self.started) / (self.LAST - self.FIRST)
            steps = int(trainer.estimated_stepping_batches) - self.LAST
            print(f"{steps} more steps at the present speed: {duration(steps * seconds)}")


class Progress(TQDMProgressBar):
    """Lightning's progress bar with images per second."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def get_metrics(
        self, trainer: Trainer, pl_module: object
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)  # type: ignore[arg-type]
        metrics.pop("v_num", None)
        # Lightning sets the bar's position itself, so tqdm has no rate.
        bar = self.train_progress_bar
        images, elapsed = bar.n * self.batch, bar.format_dict["elapsed"]
        return {"images/s": round(images / elapsed, 1), **metrics} if elapsed else metrics
