"""Training by cross-validation: one network without each fold or laboratory, and one network from all.

Temperature and thresholds are set on the out-of-fold predictions: each photo is scored by the network that
was trained without it. All folds start from the same weights, so that their weights stay close enough to be
averaged into one network (Wortsman et al. 2022, model soups) with new batch-norm statistics. With
laboratories, one more network is trained on all of them, and averaged with those that start from the same
trained weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lightning.pytorch import seed_everything
from safetensors.torch import save_file

from training.config import TrainConfig
from training.data import Row
from training.drafts import draft_of
from training.loading import training_loader
from training.module import BEST, Finetuning, load_checkpoint
from training.network import Network, reset_statistics
from training.patches import Patches
from training.ranks import do_once
from training.rows import fold_path, fold_paths, fold_rows, mix_of, seen_others, shared_rows
from training.trainer import fit_once

STATISTICS_BATCHES = 100  # for the batch-norm statistics of the mean network
SHARED, ALL = "shared", "all"  # folders in a run


def fit_folds(
    train: Sequence[Row],
    validation: Sequence[Row],
    others: Sequence[Row],
    patches: Patches,
    config: TrainConfig,
    run: Path,
    processes: Fabric,
) -> Path:
    """Train `run/shared` and `run/fold-1` …, and write `run/best.ckpt`: the mean of the folds.

    With laboratories, also `run/all`, trained on all of them for the same number of epochs: see `members_of`.
    others: outliers; a network without a laboratory sees none from there.
    """
    start = fit_shared(train, validation, patches, config, run, processes)
    for k, (fold_train, held_out) in enumerate(fold_rows(train, validation, config)):
        mix = mix_of(fold_train, config)
        fold_start = start_without(held_out, start, config)
        fold_config = replace(config, initial=fold_start, seed=config.seed + k, mix=mix)
        fold_others = seen_others(others, held_out, config)
        fit_once([*fold_train, *fold_others], held_out, patches, fold_config, fold_path(run, k))
    if config.select_on == "laboratories":
        last = replace(config, monitor="last", patience=0)  # no cells are left to choose an epoch on
        fit_once([*train, *others], [], patches, last, run / ALL)
    members = members_of(train, validation, config, run)
    do_once(processes, lambda: save_mean(members, train, patches, config, run))
    return run / BEST


def members_of(train: Sequence[Row], validation: Sequence[Row], config: TrainConfig, run: Path) -> list[Path]:
    """Return the folders of the networks that are averaged: near each other, as they start from one."""
    if config.select_on != "laboratories":
        return fold_paths(run)
    if not config.initial_laboratories:  # far apart: they start from ImageNet or from random weights
        return [run / ALL]
    starts = [
        start_without(held_out, config.initial, config)
        for _, held_out in fold_rows(train, validation, config)
    ]
    return [run / ALL, *(fold_path(run, k) for k, start in enumerate(starts) if start == config.initial)]


def save_mean(
    members: Sequence[Path], train: Sequence[Row], patches: Patches, config: TrainConfig, run: Path
) -> None:
    """Write the mean of the best networks of these folders as the run's best checkpoint."""
    network = mean_network([load_checkpoint(path / BEST, config) for path in members])
    module = Finetuning(network, replace(config, coarse_epochs=0))
    renew_statistics(module, train, patches)
    with draft_of(run / BEST) as draft:
        torch.save({"state_dict": module.state_dict()}, draft)


def fit_shared(
    train: Sequence[Row],
    validation: Sequence[Row],
    patches: Patches,
    config: TrainConfig,
    run: Path,
    processes: Fabric,
) -> str:
    """Return the folds' initial weights.

    `config.initial`, or with `shared_epochs` the path of weights trained from it on the other archives.
    """
    rows = shared_rows(train, validation)
    if not config.shared_epochs:
        return config.initial
    mix = mix_of(rows, config)
    weights = run / SHARED / "weights.safetensors"
    if not weights.is_file():
        shared = replace(config, epochs=config.shared_epochs, coarse_epochs=config.shared_epochs, mix=mix)
        shared = replace(shared, monitor="last", patience=0)  # without validation
        best = fit_once(rows, [], patches, shared, run / SHARED)
        do_once(processes, lambda: save_start(best, config, weights))
    return str(weights)


def start_without(held_out: Sequence[Row], start: str, config: TrainConfig) -> str:
    """Return the initial weights of the network without these rows, which have not seen the laboratory."""
    seen = {row.laboratory for row in held_out} & set(config.initial_laboratories)
    return config.initial_elsewhere if config.select_on == "laboratories" and seen else start


def save_start(best: Path, config: TrainConfig, weights: Path) -> None:
    """Write the checkpoint's weights as the file that the folds start from."""
    with draft_of(weights) as draft:  # a resumed run skips the shared training if this file exists
        save_file(load_checkpoint(best, config).trunk.state_dict(), draft)


@torch.no_grad()
def mean_network(networks: Sequence[Network]) -> Network:
    """Set the first network's weights to the mean of all networks and return it."""
    mean = networks[0]
    states = [network.trunk.state_dict() for network in networks]
    for name, tensor in mean.trunk.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.stack([state[name] for state in states]).mean(0))
    return mean


@torch.no_grad()
def renew_statistics(module: Finetuning, train: Sequence[Row], patches: Patches) -> None:
    """Compute the batch-norm means and variances of the current weights over training images."""
    seed_everything(module.config.seed, workers=True, verbose=False)  # the same after a resumed run
    reset_statistics(module.network)
    module.network.train()
    loader = training_loader(train, patches, module.config)
    for pixels, _, _ in islice(loader, STATISTICS_BATCHES):
        module.network(module.vary(pixels))
    module.network.eval()
