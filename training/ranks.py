"""The processes of one run: those that `torchrun` started, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from lightning.fabric import Fabric
from torch import distributed

from training.config import TrainConfig
from training.errors import RecipeError


def places() -> dict[str, Any]:
    """Each process has one device; Lightning wants to be told how many there are, of how many machines."""
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        return {"devices": 1}
    return {"devices": int(os.environ["LOCAL_WORLD_SIZE"]), "num_nodes": int(os.environ["GROUP_WORLD_SIZE"])}


def meet(config: TrainConfig) -> Fabric:
    """Wait for all of them, so that none is still reading what the first is about to write."""
    processes = Fabric(**places())
    if config.batch % processes.world_size:
        raise RecipeError(
            f"a batch of {config.batch} cannot be dealt out to {processes.world_size} processes evenly: "
            "start another number of them, or say `--set batch=…`"
        )
    processes.launch()
    processes.barrier()
    return processes


def do_once(processes: Fabric, work: Callable[[], object]) -> None:
    """The first process does it; the others wait, for as long as it takes, and see what it wrote."""
    with processes.rank_zero_first():
        if processes.is_global_zero:
            work()
