"""Samples the resources of a running service from /proc (Linux), and the statuses that it counted."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, mean, median
from typing import Any

from benchmarks.server import HOST, Server, family, field

EVERY_S = 2.0  # between two samples
MOST_GROWTH = 0.05  # allowed for resident memory
ALLOWED_MIB = 10.0  # of growth, if that is more
COUNTS = re.compile(rb'^leuko_http_request_duration_seconds_count\{.*code="(\d+)".*\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Line:
    """A line of the table. here: the result; kept: whether it meets the promise, None if there is none."""

    measure: str
    promised: str
    here: str
    kept: bool | None = None


@dataclass(frozen=True)
class Sample:
    at: float  # s
    mib: float
    files: int
    threads: int


def sample(server: Server) -> Sample:
    files = threads = 0
    for pid in family(server.pid):
        files += count(Path(f"/proc/{pid}/fd"))
        threads += count(Path(f"/proc/{pid}/task"))
    return Sample(time.monotonic(), server.memory_mib() or float("nan"), files, threads)


def count(folder: Path) -> int:
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:  # the process has just ended
        return 0


@asynccontextmanager
async def watching(server: Server) -> AsyncIterator[list[Sample]]:
    """Sample the service in the background; the list grows until the context ends."""
    samples: list[Sample] = []

    async def watch() -> None:
        while True:
            samples.append(sample(server))
            await asyncio.sleep(EVERY_S)

    task = asyncio.create_task(watch())
    try:
        yield samples
    finally:
        task.cancel()


def statuses(server: Server) -> Counter[int]:
    """Return how often the service answered with each status, by its own metrics."""
    with urllib.request.urlopen(f"http://{HOST}:{server.port}/metrics", timeout=30) as answer:
        counts = COUNTS.findall(answer.read())
    total: Counter[int] = Counter()
    for code, value in counts:
        total[int(code)] += int(float(value))
    return total


def listed(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{name}: {counts[name]:,}" for name in sorted(counts)) or "none"


def none_of(measure: str, counts: Mapping[Any, int]) -> Line:
    return Line(measure, "0", listed(counts), not counts)


def memory_line(samples: Sequence[Sample]) -> Line:
    before, after = (mean(one.mib for one in quarter(samples, n)) for n in (1, 3))
    allowed = max(ALLOWED_MIB, MOST_GROWTH * before)
    here = f"{before:.0f} → {after:.0f}, {slope(samples, lambda one: one.mib):+.1f} a minute"
    return Line("MiB, second → last quarter", f"≤ {allowed:.0f} more", here, after - before <= allowed)


def count_line(what: str, samples: Sequence[Sample], value: Callable[[Sample], int], allowed: int) -> Line:
    before, after = (median(map(value, quarter(samples, n))) for n in (1, 3))
    here = f"{before:.0f} → {after:.0f}, {slope(samples, value):+.1f} a minute"
    return Line(f"{what}, second → last quarter", f"≤ {allowed} more", here, after - before <= allowed)


def quarter(samples: Sequence[Sample], number: int) -> Sequence[Sample]:
    """Return a quarter of the samples. number: 0 to 3."""
    size = len(samples) / 4
    return samples[int(number * size) : max(int((number + 1) * size), int(number * size) + 1)]


def slope(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """Return the growth per minute over the second half, by linear regression."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return 0.0
    return 60 * linear_regression([one.at for one in half], [value(one) for one in half]).slope


def fresh_peak(server: Server) -> float:
    """Reset the kernel's peak memory of all processes; return the MiB from which `peak_mib` now rises."""
    for pid in family(server.pid):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_mib(server)


def peak_mib(server: Server) -> float:
    """Return the sum of the peaks of all processes; shared pages count for each."""
    return sum(int(kb) for pid in family(server.pid) for kb in field(pid, r"VmHWM:\s+(\d+) kB")) / 1024
