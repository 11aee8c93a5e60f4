"""`leuko score SOURCE DESTINATION`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from app.bulk import cluster
from app.bulk.cluster import Unread
from app.bulk.destination import Destination, Written
from app.bulk.location import Location, shown
from app.bulk.plan import Part, fingerprint, plan
from app.bulk.worker import pack
from app.engine.bundle import load_bundle
from app.errors import StartupError, Unusable
from app.inference.service import image_limits
from app.registry.fetch import locate
from app.settings import Settings

MOST_SAID = 10  # parts that were left out, by name
ESTIMATE_S = 3600.0  # time left: from the rate of so long, since a part may take minutes


@dataclass
class Tally:
    """parts: all there are."""

    parts: int
    expected: int | None  # images, where that is known before they are read
    parts_done: int = 0
    images: int = 0
    errors: int = 0
    unread: list[str] = field(default_factory=list)  # why, for each part that was left out

    def add(self, came: Written | Unread) -> None:
        if isinstance(came, Unread):
            self.unread.append(came.why)
            return
        self.parts_done += 1
        self.images += came.rows
        self.errors += came.errors

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
    """Goes on where an earlier run of the same ended; 0 if every image has its row, 1 if parts were left out.

    Raises LeukoError and OSError.
    """
    if address is not None and "://" in address:
        raise StartupError(f"{address}: name HOST:PORT of the cluster's head, on a machine of the cluster")
    folder = locate(settings)
    bundle = load_bundle(folder)
    source, destination = absolute(source), absolute(destination)
    into = Location.of(destination)
    if Location.of(source).holds(into):
        raise Unusable(f"{into.path} lies within the source: name another destination")
    parts = plan(Location.of(source))
    about = {"source": shown(source), "parts": fingerprint(parts), "model_sha256": bundle.sha256}
    rows = Destination(into)
    done = rows.begin(about)
    tally = Tally(len(parts), _expected(parts))
    for written in done.values():
        tally.add(written)
    before, began = tally.images, time.monotonic()
    left = {index: part for index, part in enumerate(parts) if index not in done}
    if left:
        files = pack(folder)
        _work(left, files, source, destination, settings, tally, address, workers)
        if absent := tally.parts_done - len(rows.parts()):
            raise Unusable(f"{absent} parts are not in {into.path}: workers wrote to another of this name")
    seconds = time.monotonic() - began
    _report(tally, before, seconds, shown(destination), console or Console(), as_json)
    for why in tally.unread[:MOST_SAID]:
        print(f"leuko: left out: {why}", file=sys.stderr)
    if tally.unread:
        print(f"leuko: {len(tally.unread)} parts were left out: the same again tries them", file=sys.stderr)
    return 1 if tally.unread else 0


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
        Progress(
            *columns, console=console, disable=not console.is_terminal, speed_estimate_period=ESTIMATE_S
        ) as progress,
    ):
        count, threads = cluster.divide(cluster.nodes(), workers, settings.threads)
        limits, patience_s = image_limits(settings), settings.engine_timeout_s
        job = cluster.Job(source, destination, settings.engine, threads, limits, patience_s)
        task = progress.add_task("", total=tally.total, completed=tally.images, rate="")
        before, began = tally.images, time.monotonic()
        for came in cluster.score(left, job, files, count):
            tally.add(came)
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
        "parts_left_out": len(tally.unread),
        "images_before": before,
        "seconds": round(seconds, 2),
        "images_per_second": round(new / seconds, 1) if new else None,
        "destination": destination,
    }
    if as_json or not console.is_terminal:
        print(json.dumps(found), file=console.file)
    else:
        console.print(f"{tally.images:,} images, {tally.errors:,} of them errors, in {destination}")
