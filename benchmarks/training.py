"""Processor utilisation of `leuko-train fit`: its shares of time in the network and in augmentation."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from app.engine.bundle import CLASSES
from benchmarks.engine import encode
from training.config import TrainConfig, load_recipe
from training.data import Row
from training.loading import training_loader
from training.module import Finetuning
from training.network import Network
from training.patches import cut_patches
from training.trainer import build_trainer

IMAGES = 128


class Timed(Finetuning):
    """Adds up the time spent in augmentation."""

    varying_s = 0.0

    def vary(self, patches: Tensor) -> Tensor:
        began = now()
        augmented = super().vary(patches)
        self.varying_s += now() - began
        return augmented


class Clock(Callback):
    """Adds up the steps' time, and takes the time from the second step's start to the last one's end."""

    def __init__(self) -> None:
        self.began = self.ended = self.step_began = self.steps_s = self.cpu_s = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: object, index: int
    ) -> None:
        del trainer, module, batch
        if index == 1:  # the first step allocates and compiles
            self.began, self.cpu_s, self.steps_s = now(), -time.process_time(), 0.0
        self.step_began = now()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: object, batch: object, index: int
    ) -> None:
        del trainer, outputs, batch
        self.ended = now()
        self.steps_s += self.ended - self.step_began
        if index == 0:
            assert isinstance(module, Timed)
            module.varying_s = 0.0

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        del trainer, module
        self.cpu_s += time.process_time()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--recipe", default="default", help="recipe (default: default)")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps per measurement (default: 20)")
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    table = Table("pixels a side", "images/s", "in the network", "augmentation", "cores busy")
    with tempfile.TemporaryDirectory() as folder:
        rows = draw(Path(folder))
        for coarse_epochs in (1, 0):
            config = replace(
                recipe,
                initial="random",
                samples=args.steps * recipe.batch,
                mix={},
                epochs=1,
                coarse_epochs=coarse_epochs,
                monitor="last",
                patience=0,
            )
            table.add_row(*measure(rows, config, Path(folder) / f"run-{coarse_epochs}"))
    Console().print(table)
    return 0


def measure(rows: Sequence[Row], config: TrainConfig, run: Path) -> tuple[str, ...]:
    run.mkdir()
    clock = Clock()
    module = Timed(Network(len(CLASSES), config.preprocessing), config)
    trainer = build_trainer(config, run)
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    trainer.fit(module, training_loader(rows, cut_patches(rows, config, run), config))
    seconds = clock.ended - clock.began
    images = (config.samples // config.batch - 1) * config.batch
    cores = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    return (
        str(config.coarse_size if config.coarse_epochs else config.preprocessing.size),
        f"{images / seconds:.1f}",
        f"{(clock.steps_s - module.varying_s) / seconds:.2f}",
        f"{module.varying_s / seconds:.2f}",
        f"{clock.cpu_s / seconds / cores:.2f}",
    )


def draw(folder: Path) -> list[Row]:
    archive = folder / "cells"
    rows = []
    for seed in range(IMAGES):
        label = CLASSES[seed % len(CLASSES)]
        path = archive / label / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(label, seed))
        rows.append(
            Row(
                str(archive),
                f"{label}/{seed}.jpg",
                label,
                "train",
                str(seed),
                True,
                sha256(path.read_bytes()).hexdigest(),
            )
        )
    return rows


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    raise SystemExit(main())
