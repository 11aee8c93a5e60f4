"""Compare `leuko score` with the same work in one process: the cost of Ray, the gain from more workers."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.bulk import cluster
from app.bulk.destination import Destination, ScoredPart
from app.bulk.location import Location
from app.bulk.plan import plan
from app.bulk.worker import Scorer, pack, unpack
from app.engine.bundle import CLASSES
from app.inference.service import image_limits
from app.registry.fetch import locate
from app.samples.smear import draw_smear
from app.settings import Settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__)
    parser.add_argument("source", nargs="?", help="folder of images; default: drawn images")
    parser.add_argument(
        "--parts", type=int, default=8, help="parts of 1,000 images to score for each line [%(default)s]"
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[1, 2],
        help="numbers of one-core workers, one line for each",
    )
    arguments = parser.parse_args()
    if arguments.parts <= max(arguments.workers):
        parser.error(
            "--parts must be greater than every number of --workers: the first part of each is not timed"
        )
    console = Console()
    with tempfile.TemporaryDirectory(prefix="leuko-bulk-") as folder:
        source = arguments.source or draw(Path(folder) / "images", 1000 * arguments.parts)
        table = Table("what", "images/s", "÷ one process", "start, s")
        ceiling = in_process(source, f"{folder}/in-process", arguments.parts)
        table.add_row("one process", f"{ceiling:.0f}", "1.00", "")
        cores = sorted(os.sched_getaffinity(0))
        runs = {"Ray, one worker": (1, len(cores))}
        runs |= {f"Ray, {n} of one core": (n, 1) for n in arguments.workers if n <= len(cores)}
        for index, (what, (workers, threads)) in enumerate(runs.items()):
            os.sched_setaffinity(0, cores[: workers * threads])  # inherited by the processes of Ray
            rate, start = on_ray(source, f"{folder}/{index}", arguments.parts, workers, threads)
            table.add_row(what, f"{rate:.0f}", f"{rate / ceiling:.2f}", f"{start:.1f}")
        os.sched_setaffinity(0, cores)
        again = in_process(source, f"{folder}/again", arguments.parts)
        table.add_row("one process, again", f"{again:.0f}", f"{again / ceiling:.2f}", "")
    console.print(table)
    return 0


def draw(folder: Path, count: int) -> str:
    """Draw 16 images and link to them, since reading is not what is measured. Return the folder."""
    folder.mkdir()
    for index in range(16):
        draw_smear(CLASSES[index % 4], seed=index).save(folder / f"{index:06d}.jpg", quality=92)
    for index in range(16, count):
        (folder / f"{index:06d}.jpg").symlink_to(f"{index % 16:06d}.jpg")
    return str(folder)


def in_process(source: str, destination: str, count: int) -> float:
    """Return the images/s of a worker's code on all cores without Ray. The first part is not timed."""
    settings = Settings()
    classifier = unpack(pack(locate(settings)), settings.engine, 0)
    begin(destination)
    scorer = Scorer(classifier, source, destination, image_limits(settings), settings.engine_timeout_s)
    parts = plan(Location.of(source)).parts[:count]
    ends = [(scorer.score(index, part).rows, time.monotonic()) for index, part in enumerate(parts)]
    scorer.close()
    return sum(rows for rows, _ in ends[1:]) / (ends[-1][1] - ends[0][1])


def begin(destination: str) -> None:
    Destination(Location.of(destination)).begin({})


def on_ray(source: str, destination: str, count: int, workers: int, threads: int) -> tuple[float, float]:
    """Return the images/s from the end of the first part to that of the last, and the start time in s."""
    settings = Settings()
    parts = dict(enumerate(plan(Location.of(source)).parts[:count]))
    begin(destination)
    began = time.monotonic()
    with cluster.ray_session(None):
        limits, timeout_s = image_limits(settings), settings.engine_timeout_s
        job = cluster.Job(source, destination, settings.engine, threads, limits, timeout_s)
        ends = [
            (time.monotonic(), written.rows)
            for written in cluster.score(parts, job, pack(locate(settings)), workers)
            if isinstance(written, ScoredPart)
        ]
    # Workers start together, so timing starts when each has done its first part.
    first = ends[workers - 1][0]
    rate = sum(rows for _, rows in ends[workers:]) / (ends[-1][0] - first)
    return rate, first - began - sum(rows for _, rows in ends[:workers]) / rate


if __name__ == "__main__":
    raise SystemExit(main())
