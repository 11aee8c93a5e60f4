"""The network of `app.imaging.cell_map` in torch, its training and its export.

python -m training.fields.network --steps 3000 # with the data in LEUKO_DATA; writes app/imaging/cell_map.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from app.imaging.cell_map import WEIGHTS
from training.fields.composer import Composer, Sample
from training.fields.sources import read_sources

FRESH, POOL, BATCH = 8, 1000, 40  # samples: composed for each step; kept; in a batch
RATE = 3e-3
EARLY = 40  # batches of fresh samples before the first step
JITTER, OFFSET = 0.1, 0.03  # of the channels' densities


class CellMapNetwork(nn.Module):
    """Optical density [n, 3, h, w] → [n, 5, h / 4, w / 4]; its layers have the names of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(12, 16, 3, padding=1)
        self.coarse = nn.Conv2d(16, 24, 3, padding=1, stride=2)
        self.near = nn.Conv2d(24, 32, 3, padding=1)
        self.around = nn.Conv2d(32, 32, 3, padding=2, dilation=2)
        self.beyond = nn.Conv2d(32, 32, 3, padding=3, dilation=3)
        self.mixed = nn.Conv2d(32, 32, 1)
        self.head = nn.Conv2d(32, 5, 1)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, -3.0)  # few places are leukocytes

    def forward(self, density: torch.Tensor) -> torch.Tensor:
        x = functional.pixel_unshuffle(density, 2)
        x = functional.relu(self.fine(x))
        x = functional.relu(self.coarse(x))
        x = functional.relu(self.near(x))
        x = functional.relu(x + self.around(x))
        x = functional.relu(x + self.beyond(x))
        maps: torch.Tensor = self.head(functional.relu(self.mixed(x)))
        return maps

    def save(self, path: Path) -> None:
        """Write the weights in half precision, as `app.imaging.cell_map` reads them."""
        arrays = {name: value.numpy().astype(np.float16) for name, value in self.state_dict().items()}
        np.savez(path, allow_pickle=False, **arrays)


def loss_of(raw: torch.Tensor, batch: Sample) -> torch.Tensor:
    """Return the penalty-reduced focal loss of the leukocytes (Zhou et al. 2019, "Objects as Points"), and
    smooth L1 losses of places, extents and red cells.
    """
    seen = torch.sigmoid(raw[:, 0]).clamp(1e-5, 1 - 1e-5)
    missed = -(torch.log(seen) * (1 - seen) ** 2)[batch.middle].sum()
    elsewhere = batch.judged & ~batch.middle
    false = -((1 - batch.near) ** 4 * torch.log(1 - seen) * seen**2)[elsewhere].sum()
    inside = (batch.inside & batch.judged)[:, None]
    places = (
        functional.smooth_l1_loss(raw[:, 1:4], batch.measures[:, :3], reduction="none", beta=0.2) * inside
    )
    red_cells = functional.smooth_l1_loss(raw[:, 4], batch.measures[:, 3], beta=0.2)
    return (
        (missed + false) / batch.middle.sum().clamp(min=1)
        + 0.5 * places.sum() / inside.sum().clamp(min=1)
        + red_cells
    )


class _Samples(Dataset[Sample]):
    def __init__(self, composer: Composer, count: int, seed: int) -> None:
        self.composer, self.count, self.seed = composer, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        torch.set_num_threads(1)
        return self.composer.compose(np.random.default_rng([self.seed, index]))


def batches(composer: Composer, steps: int, seed: int) -> Iterator[Sample]:
    """Yield batches: each has some fresh samples and others that were seen before, all turned alike."""
    rng = np.random.default_rng(seed)
    pool: list[Sample] = []
    fresh = DataLoader(
        _Samples(composer, (steps + EARLY) * FRESH, seed),
        FRESH,
        num_workers=2,
        collate_fn=lambda items: items,
    )
    for step, samples in enumerate(fresh):
        pool = [*pool, *samples][-POOL:]
        if step >= EARLY:
            older = [pool[i] for i in rng.integers(0, len(pool), BATCH - FRESH)]
            batch = Sample(*map(torch.stack, zip(*samples, *older, strict=True))).turned(rng)
            jitter = torch.exp(JITTER * torch.randn(BATCH, 3, 1, 1))
            density = batch.density * jitter + OFFSET * torch.randn(BATCH, 3, 1, 1)
            yield batch._replace(density=density.clamp(0, 5))


def fit(composer: Composer, steps: int, *, seed: int = 0) -> CellMapNetwork:
    """Train a network from scratch."""
    torch.manual_seed(seed)
    network = CellMapNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for batch in tqdm(batches(composer, steps, seed), total=steps, unit=" steps", disable=None):
        loss = loss_of(network(batch.density), batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        rate.step()
    return network


def main(arguments: Collection[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", nargs="*", default=[], help="laboratories that are left out")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args(None if arguments is None else [*arguments])
    composer = Composer([source for source in read_sources() if source.laboratory not in options.without])
    fit(composer, options.steps, seed=options.seed).save(options.out)


if __name__ == "__main__":
    main()
