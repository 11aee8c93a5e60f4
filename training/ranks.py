"""The processes of one run: those started by `torchrun`, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from lightning.fabric import Fabric
from torch import distributed

from training.config import TrainConfig
from training.errors import RecipeError


def device_counts() -> dict[str, Any]:
    """Return Lightning's arguments for the numbers of devices and machines; each process has one device."""
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        return {"devices": 1}
    return {"devices": int(os.environ["LOCAL_WORLD_SIZE"]), "num_nodes": int(os.environ["GROUP_WORLD_SIZE"])}


def start_processes(config: TrainConfig) -> Fabric:
    """Connect the processes and wait for all, so that none still reads what the first is about to write.

    Raise RecipeError if the batch cannot be divided among them.
    """
    processes = Fabric(**device_counts())
    if config.batch % processes.world_size:
        raise RecipeError(
            f"batch = {config.batch} cannot be divided evenly among {processes.world_size} processes: "
            "start another number of them, or change it with `--set batch=…`"
        )
    processes.launch()
    processes.barrier()
    return processes


def do_once(processes: Fabric, work: Callable[[], object]) -> None:
    """Call `work` in the first process; the others wait until it is done, without a time limit."""
    with processes.rank_zero_first():
        if processes.is_global_zero:
            work()
