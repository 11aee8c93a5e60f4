"""A container's limit on processor time (Linux's cgroups), which the number of cores does not show."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def threads_within_limit(processes: int = 1, groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Return how many threads each process can keep busy; 0 if there is no limit below its cores."""
    limit = min(_limits(groups, own), default=math.inf)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = limit / processes
    return max(1, math.ceil(share)) if share < cores else 0


def _limits(groups: Path, own: Path) -> Iterator[float]:
    """Yield the limits, in cores, of this process's group and of those that it is in.

    groups: where they are mounted. In a container that is its own group, whatever path `own` gives.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = groups
        elif "cpu" in controllers.split(","):
            root = groups / "cpu"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in {root, group, *(parent for parent in group.parents if parent.is_relative_to(root))}:
            yield from _limit(folder)


def _limit(folder: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):  # no such group, or "max"
        quota, period = (folder / "cpu.max").read_text().split()
        yield int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) / int(period)
