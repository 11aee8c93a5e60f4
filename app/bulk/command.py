"""`leuko score SOURCE DESTINATION`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from app.bulk import cluster
from app.bulk.destination import Destination, Written
from app.bulk.location import Location
from app.bulk.plan import Part, fingerprint, plan
from app.bulk.worker import pack
from app.bundles import locate
from app.service import image_limits
from app.settings import Settings
from app.vision.bundle import load_bundle


@dataclass
class Tally:
    """parts: all there are."""

    parts: int
    expected: int | None  # images, where that is known before they are read
    parts_done: int = 0
    images: int = 0
    errors: int = 0

    def add(self, written: Written) -> None:
        self.parts_done += 1
        self.images += written.rows
        self.errors += written.errors

    @property
    def total(self) -> int | None:
        """Images; of tar shards what those that were read lead to expect."""
        if self.expected is not None or not self.parts_done:
            return self.expected
        return self.images * self.parts // self.parts_done


def score(
    source: str,
    destination: str,
    settings: Settings,
    *,
    address: str | None = None,
    workers: int | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Goes on where an earlier run of the same ended."""
    folder = locate(settings)
    bundle = load_bundle(folder)
    source, destination = absolute(source), absolute(destination)
    parts = plan(Location.of(source))
    about = {"source": source, "parts": fingerprint(parts), "model_sha256": bundle.sha256}
    done = Destination(Location.of(destination)).begin(about)
    tally = Tally(len(parts), _expected(parts))
    for written in done.values():
        tally.add(written)
    before, began = tally.images, time.monotonic()
    left = {index: part for index, part in enumerate(parts) if index not in done}
    if left:
        files = pack(folder)
        _work(left, files, source, destination, settings, tally, address, workers)
    _report(tally, before, time.monotonic() - began, destination, console or Console(), as_json)
    return 0


def absolute(address: str) -> str:
    """The same for workers, which have working directories of their own."""
    return address if "://" in address else str(Path(address).absolute())


def _work(
    left: dict[int, Part],
    files: dict[str, bytes],
    source: str,
    destination: str,
    settings: Settings,
    tally: Tally,
    address: str | None,
    workers: int | None,
) -> None:
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        TextColumn("{task.completed:,.0f} images"),
        TextColumn("{task.fields[rate]}", style="cyan"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with (
        cluster.connected(address),
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        count, threads = cluster.divide(workers)
        threads = settings.threads or threads
        limits, patience_s = image_limits(settings), settings.engine_timeout_s
        job = cluster.Job(source, destination, settings.engine, threads, limits, patience_s)
        task = progress.add_task("", total=tally.total, completed=tally.images, rate="")
        before, began = tally.images, time.monotonic()
        for written in cluster.score(left, job, files, count):
            tally.add(written)
            rate = (tally.images - before) / (time.monotonic() - began)
            progress.update(task, total=tally.total, completed=tally.images, rate=f"{rate:,.0f} images/s")


def _expected(parts: Sequence[Part]) -> int | None:
    counts = [part.count for part in parts if part.count is not None]
    return sum(counts) if len(counts) == len(parts) else None


def _report(
    tally: Tally, before: int, seconds: float, destination: str, console: Console, as_json: bool
) -> None:
    new = tally.images - before
    found = {
        "images": tally.images,
        "errors": tally.errors,
        "images_before": before,
        "seconds": round(seconds, 2),
        "images_per_second": round(new / seconds, 1) if new else None,
        "destination": destination,
    }
    if as_json or not console.is_terminal:
        print(json.dumps(found), file=console.file)
    else:
        console.print(f"{tally.images:,} images, {tally.errors:,} of them errors, in {destination}")
