"""Measure how the service scales with cores, and the limit of one process: a network that takes no time."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from app.engine.bundle import CLASSES
from app.engine.classifier import Classifier
from app.engine.interface import Output
from app.imaging.framing import Pixels
from app.registry.fetch import load as load_bundle
from app.server.serve import serve as serve_application
from app.settings import Settings
from benchmarks.client import load, tool
from benchmarks.engine import draw
from benchmarks.server import HOST, Command, leuko, serve

CONNECTIONS = 32
SECONDS = 6.0


class Instant:
    """An engine that returns the same output for every image at once."""

    name, device, batch = "instant", "none", 4

    def __init__(self, output: Output, workers: int) -> None:
        self.workers = workers
        self._output = output

    def infer(self, pixels: Pixels, *, maps: bool = False, exclusive: bool = True) -> Output:  # noqa: ARG002
        n = len(pixels)
        return Output(self._output.logits.repeat(n, 0), self._output.features.repeat(n, 0))

    def warm_up(self, batch: int, size: int) -> None:
        pass


def main() -> int:
    cores = sorted(os.sched_getaffinity(0))
    images = draw(CLASSES, 32)
    result = Table("cores", "images/s", "÷ one core", title=f"{CONNECTIONS} connections, load by {tool()}")
    speeds = [measure(partial(pinned, cores[:count]), images) for count in range(1, len(cores) + 1)]
    for count, speed in enumerate(speeds, start=1):
        result.add_row(str(count), f"{speed:.0f}", f"{speed / speeds[0]:.2f}")
    instant = measure(without_network, images)
    result.add_row(f"{len(cores)}, no network", f"{instant:.0f}", f"{instant / speeds[0]:.2f}")
    Console().print(result)
    return 0


def measure(command: Command, images: Sequence[bytes]) -> float:
    with serve(command) as server:
        load(HOST, server.port, images, CONNECTIONS, 1.0)
        return load(HOST, server.port, images, CONNECTIONS, SECONDS).images_per_second


def pinned(cores: Sequence[int], port: int) -> Sequence[str | Path]:
    return ["taskset", "--cpu-list", ",".join(map(str, cores)), *leuko(port)]


def without_network(port: int) -> Sequence[str | Path]:
    return [sys.executable, "-m", "benchmarks.scaling", str(port)]


def load_instant(settings: Settings) -> Classifier:
    classifier = load_bundle(settings)
    side = classifier.bundle.preprocessing.size
    output = classifier.engine.infer(np.zeros((1, side, side, 3), np.uint8))
    classifier.engine = Instant(output, classifier.engine.workers)
    classifier.warm_up = lambda _: None  # type: ignore[assignment,method-assign]  # it would check the known answer
    return classifier


if __name__ == "__main__":
    if sys.argv[1:]:
        settings = Settings.from_environ(os.environ)
        raise SystemExit(serve_application(replace(settings, port=int(sys.argv[1])), load_instant))
    raise SystemExit(main())
