"""Measure the torch engine on a GPU by batch size, and the service beside one whose network takes no time."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from app.engine.classifier import Classifier, load_classifier
from app.imaging.decode import decode
from app.imaging.framing import Pixels, frame_cell
from app.registry.fetch import locate
from app.settings import Settings
from benchmarks.client import Load, load, tool
from benchmarks.engine import draw, engine_rate, machine, rate
from benchmarks.scaling import without_network
from benchmarks.server import HOST, Command, leuko, serve

BATCHES = (1, 8, 32, 64)
CALLERS = 4
CALLS = 8  # of each caller in a round
TARGET = 20_000  # images/s on an H100 or similar
SECONDS = 3.0
CONNECTIONS = 128


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    cores = os.cpu_count() or 1
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=sorted({1, cores // 2 or 1, cores}),
        help="values of LEUKO_PROCESSES, one line for each [%(default)s]",
    )
    processes: Sequence[int] = parser.parse_args().processes
    console = Console()
    if not torch.cuda.is_available():
        console.print("not measured: this machine has no CUDA device")
        return 0
    classifier = load_classifier(locate(Settings.from_environ(os.environ)), "torch")
    console.print(f"{machine(classifier)}, load by {tool()}", highlight=False)
    console.print(engine(classifier))
    images = draw(classifier.bundle.labels, 64)
    del classifier
    console.print(service(images, processes))
    return 0


def engine(classifier: Classifier) -> Table:
    classifier.warm_up(classifier.engine.batch)
    cells = [
        frame_cell(decode(data), classifier.bundle.preprocessing)
        for data in draw(classifier.bundle.labels, 32)
    ]
    pixels = np.stack([cells[index % len(cells)].pixels for index in range(max(BATCHES))])
    result = Table(
        "batch",
        "ms",
        "images/s",
        f"{CALLERS} callers",
        f"÷ {TARGET}",
        title="engine, from pixels in memory to logits in memory",
    )
    for n in BATCHES:
        result.add_row(str(n), *speeds(classifier, pixels[:n]))
    return result


def speeds(classifier: Classifier, pixels: Pixels) -> tuple[str, ...]:
    n = len(pixels)
    alone = engine_rate(classifier, pixels, SECONDS)

    def call(_: int) -> None:
        for _ in range(CALLS):
            classifier.engine.infer(pixels)

    with ThreadPoolExecutor(CALLERS) as pool:
        together = rate(lambda: list(pool.map(call, range(CALLERS))), CALLERS * CALLS * n, SECONDS)
    return f"{1000 * n / alone:.2f}", f"{alone:.0f}", f"{together:.0f}", f"{together / TARGET:.2f}"


def service(images: Sequence[bytes], processes: Sequence[int]) -> Table:
    """Measure the service, and beside it one without a network: the limit of HTTP, decoding and framing."""
    result = Table(
        "processes",
        "images/s",
        "no network",
        "÷ no network",
        "p50 ms at 1",
        "failures",
        title=f"/predict, {CONNECTIONS} connections",
    )
    for count in processes:
        os.environ["LEUKO_PROCESSES"] = str(count)
        many, one = measure(leuko, images, CONNECTIONS, 1)
        [instant] = measure(without_network, images, CONNECTIONS)
        result.add_row(
            str(count),
            f"{many.images_per_second:.0f}",
            f"{instant.images_per_second:.0f}",
            f"{many.images_per_second / instant.images_per_second:.2f}",
            f"{one.p50_ms:.2f}",
            str(many.failures + one.failures),
        )
    return result


def measure(command: Command, images: Sequence[bytes], *connections: int) -> list[Load]:
    with serve(command) as server:
        load(HOST, server.port, images, CONNECTIONS, 1.0)
        return [load(HOST, server.port, images, count, SECONDS) for count in connections]


if __name__ == "__main__":
    raise SystemExit(main())
