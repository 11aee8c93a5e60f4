"""`leuko score SOURCE DESTINATION`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from app.archives.image_files import LeftOut, left_out_line
from app.bulk import cluster
from app.bulk.cluster import FailedPart
from app.bulk.destination import Destination, ScoredPart, check_columns
from app.bulk.location import Location, without_credentials
from app.bulk.plan import Part, fingerprint, plan
from app.bulk.worker import pack
from app.engine.bundle import load_bundle
from app.errors import StartupError, Unusable
from app.inference.service import image_limits
from app.printable import complain, printable
from app.registry.fetch import locate
from app.settings import Settings

MOST_NAMED = 10  # parts left out that are listed by name
ESTIMATE_S = 3600.0  # the remaining time is estimated from the rate of this period: a part may take minutes


@dataclass
class Tally:
    """What is done so far. parts: of the whole source."""

    parts: int
    expected: int | None  # images in the source; None: unknown until tar files are read
    parts_done: int = 0
    images: int = 0
    errors: int = 0
    unread: list[str] = field(default_factory=list)  # reason for each part left out
    left_out: LeftOut = field(default_factory=LeftOut)  # files that are no images

    def add(self, part: ScoredPart | FailedPart) -> None:
        if isinstance(part, FailedPart):
            self.unread.append(part.why)
            return
        self.parts_done += 1
        self.images += part.rows
        self.errors += part.errors
        self.left_out += part.left_out

    @property
    def total(self) -> int | None:
        """Images in the source; if unknown, extrapolated from the parts that are done."""
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
    all_cells: bool = False,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Score an archive, or the rest of it if an earlier run was interrupted; print a summary.

    all_cells: classify every leukocyte of each image.

    Return 1 if parts were left out or files cannot be read, else 0. Raise LeukoError and OSError.
    """
    if address is not None and "://" in address:
        raise StartupError(
            f"--address {address} must be HOST:PORT of the head node; run `leuko score` in its cluster"
        )
    folder = locate(settings)
    bundle = load_bundle(folder)
    check_columns(bundle.labels)
    source, destination = absolute(source), absolute(destination)
    folder_of_rows = Location.of(destination)
    if Location.of(source).holds(folder_of_rows):
        raise Unusable(f"{folder_of_rows.path} is inside the source: choose another destination")
    planned = plan(Location.of(source))
    parts = planned.parts
    about = {
        "source": without_credentials(source),
        "parts": fingerprint(parts),
        "model_sha256": bundle.sha256,
        "cells": "all" if all_cells else "one",
    }
    rows = Destination(folder_of_rows)
    done = rows.begin(about)
    tally = Tally(len(parts), _expected(parts), left_out=planned.left_out)
    for part in done.values():
        tally.add(part)
    before, began = tally.images, time.monotonic()
    remaining = {index: part for index, part in enumerate(parts) if index not in done}
    if remaining:
        files = pack(folder)
        max_cells = settings.max_cells if all_cells else None
        _work(remaining, files, source, destination, settings, tally, address, workers, max_cells)
        if absent := tally.parts_done - len(rows.parts()):
            raise Unusable(
                f"{absent} parts are missing from {folder_of_rows.path}: workers wrote to another folder of "
                "this name; choose a destination that all machines share"
            )
    seconds = time.monotonic() - began
    _report(tally, before, seconds, without_credentials(destination), console or Console(), as_json)
    if line := left_out_line(tally.left_out):
        complain(line)
    for name, why in [*planned.unread.items()][:MOST_NAMED]:
        complain(f"{name}: cannot be read: {why}")
    if planned.unread:
        complain(f"{len(planned.unread)} files or folders cannot be read")
    for why in tally.unread[:MOST_NAMED]:
        complain(f"left out: {why}")
    if tally.unread:
        complain(f"{len(tally.unread)} parts were left out: run the same command to retry them")
    return 1 if tally.unread or planned.unread else 0


def absolute(address: str) -> str:
    """Make a path absolute: workers have other working directories."""
    return address if "://" in address else str(Path(address).absolute())


def _work(
    remaining: dict[int, Part],
    files: dict[str, bytes],
    source: str,
    destination: str,
    settings: Settings,
    tally: Tally,
    address: str | None,
    workers: int | None,
    max_cells: int | None,
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
        cluster.ray_session(address),
        Progress(
            *columns, console=console, disable=not console.is_terminal, speed_estimate_period=ESTIMATE_S
        ) as progress,
    ):
        count, threads = cluster.divide(cluster.cores_of_machines(), workers, settings.threads)
        limits, timeout_s = image_limits(settings), settings.engine_timeout_s
        job = cluster.Job(source, destination, settings.engine, threads, limits, timeout_s, max_cells)
        task = progress.add_task("", total=tally.total, completed=tally.images, rate="")
        before, began = tally.images, time.monotonic()
        for part in cluster.score(remaining, job, files, count):
            tally.add(part)
            rate = (tally.images - before) / (time.monotonic() - began)
            progress.update(task, total=tally.total, completed=tally.images, rate=f"{rate:,.0f} images/s")


def _expected(parts: Sequence[Part]) -> int | None:
    counts = [part.count for part in parts if part.count is not None]
    return sum(counts) if len(counts) == len(parts) else None


def _report(
    tally: Tally, before: int, seconds: float, destination: str, console: Console, as_json: bool
) -> None:
    new = tally.images - before
    summary = {
        "images": tally.images,
        "errors": tally.errors,
        "parts_left_out": len(tally.unread),
        "files_left_out": tally.left_out.total(),
        "images_before": before,
        "seconds": round(seconds, 2),
        "images_per_second": round(new / seconds, 1) if new else None,
        "destination": destination,
    }
    if as_json or not console.is_terminal:
        print(json.dumps(summary), file=console.file)
    else:
        console.print(
            f"{tally.images:,} images, {tally.errors:,} of them with an error, in {printable(destination)}",
            markup=False,
            emoji=False,
        )
