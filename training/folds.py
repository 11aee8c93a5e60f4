"""Cross-validation that is also the training: a network without each fold, and the mean of them all.

The folds start from one network that never saw their archive, so their weights stay close enough for the
mean to work as one network (Wortsman et al. 2022, model soups), with the batch statistics taken anew. What
each network says of the photos that it did not see is what temperature and thresholds are set on.
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
from torch import nn

from training.config import TrainConfig
from training.data import Row
from training.drafts import draft_of
from training.loading import training_loader
from training.module import BEST, Finetuning, load_checkpoint
from training.network import Network
from training.patches import Patches
from training.ranks import do_once
from training.rows import fold_path, fold_rows, shared_rows
from training.trainer import fit_once

STATISTICS_BATCHES = 100  # for the batch norms of the mean
SHARED = "shared"


def fit_folds(
    train: Sequence[Row],
    validation: Sequence[Row],
    patches: Patches,
    config: TrainConfig,
    run: Path,
    processes: Fabric,
) -> Path:
    """Leaves `run/shared`, `run/fold-1` … and their mean as `run/best.ckpt`."""
    start = fit_shared(train, validation, patches, config, run, processes)
    for k, (some, held_out) in enumerate(fold_rows(train, validation, config)):
        part = replace(config, initial=start, seed=config.seed + k)
        fit_once(some, held_out, patches, part, fold_path(run, k))
    do_once(processes, lambda: save_mean(train, patches, config, run))
    return run / BEST


def save_mean(train: Sequence[Row], patches: Patches, config: TrainConfig, run: Path) -> None:
    network = mean_network([load_checkpoint(fold_path(run, k) / BEST, config) for k in range(config.folds)])
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
    """What the folds start from: `config.initial`, trained on the other archives if the recipe says so."""
    rows = shared_rows(train, validation)
    if not config.shared_epochs:
        return config.initial
    stems = {Path(row.archive).stem for row in rows}
    mix = {stem: share for stem, share in config.mix.items() if stem in stems}
    weights = run / SHARED / "weights.safetensors"
    if not weights.is_file():
        part = replace(config, epochs=config.shared_epochs, coarse_epochs=config.shared_epochs, mix=mix)
        best = fit_once(rows, [], patches, part, run / SHARED)
        do_once(processes, lambda: save_start(best, config, weights))
    return str(weights)


def save_start(best: Path, config: TrainConfig, weights: Path) -> None:
    with draft_of(weights) as draft:  # for its being there means that the shared training is over
        save_file(load_checkpoint(best, config).trunk.state_dict(), draft)


@torch.no_grad()
def mean_network(networks: Sequence[Network]) -> Network:
    """Every weight the mean of the networks'."""
    mean = networks[0]
    states = [network.trunk.state_dict() for network in networks]
    for name, tensor in mean.trunk.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.stack([state[name] for state in states]).mean(0))
    return mean


@torch.no_grad()
def renew_statistics(module: Finetuning, train: Sequence[Row], patches: Patches) -> None:
    """Batch norm's means and variances, over training pictures, of the weights as they now are."""
    seed_everything(module.config.seed, workers=True, verbose=False)  # whatever ran before, or was resumed
    norms = [layer for layer in module.network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
    module.network.train()
    loader = training_loader(train, patches, module.config)
    for pixels, _, _ in islice(loader, STATISTICS_BATCHES):
        module.network(module.vary(pixels))
    module.network.eval()
