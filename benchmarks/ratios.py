"""Print one table of ratios: the service ÷ its engine, ÷ that of bundle 2.0.0, and ÷ a naive service."""

from __future__ import annotations

import asyncio
import heapq
import io
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, nan
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from app.engine.bundle import CONFIG
from app.engine.classifier import load_classifier
from app.registry.fetch import locate
from app.settings import Settings
from benchmarks.client import MULTIPART, Load, form, load, tool
from benchmarks.earlier import earlier_bundle
from benchmarks.engine import Ceiling, draw, introduce, measure, workers
from benchmarks.server import HOST, Server, naive, serve
from benchmarks.stalls import corrupt_images, probing, send

IMAGES = 64
SECONDS = 8.0  # for each load
CROWD = 1000  # clients; more than the queue holds
OVERLOAD = 5.0  # times the capacity of the service
EVALUATED = 30  # copies of each image in the archive for /evaluate alone
TOLERANCE = 0.02  # of probabilities: int8 rounds slightly differently by batch size

Line = tuple[str, str, str]  # measure, target, result


@dataclass(frozen=True)
class Before:
    """Images per second with bundle 2.0.0, at 224 pixels."""

    ceiling: float
    naive: float  # of a service without batches, with torch


def main() -> int:
    console = Console()
    settings, classifier = introduce(console, f", load by {tool()}")
    labels, workers_of_engine = classifier.bundle.labels, classifier.engine.workers
    images = draw(labels, IMAGES)
    ceiling = measure(classifier, workers(settings), 3.0)
    del classifier  # so that its threads and memory do not slow the services
    with earlier_bundle() as folder:
        before = measure_before(folder, images, settings)
    with serve() as server:
        # A worker more than the engine's streams decodes while these are busy.
        lines = measure_service(server, images, labels, ceiling, before, workers_of_engine - 1)
    lines += measure_processes(images)
    console.print(table(lines, ceiling, before))
    return 0


def measure_before(folder: Path, images: Sequence[bytes], settings: Settings) -> Before:
    classifier = load_classifier(folder, settings.engine, settings.threads)
    series = measure(classifier, workers(settings), 3.0).series
    del classifier
    with serve(naive, "/docs", environ={"LEUKO_BUNDLE": str(folder)}) as server:
        load(HOST, server.port, images, 16, 1.0)
        return Before(series, load(HOST, server.port, images, 16, SECONDS).images_per_second)


def measure_processes(images: Sequence[bytes]) -> list[Line]:
    """Measure what two processes, and a second model, take."""
    with serve(environ={"LEUKO_PROCESSES": "2"}) as server:
        time.sleep(1.0)  # the second process is ready soon after the first
        load(HOST, server.port, images, 64, SECONDS)
        two = server
        memory = server.memory_mib() or nan
    return [
        ("memory under load with two processes, MiB", "≤ 250", f"{memory:.0f}"),
        ("start to ready with two processes, s", "≤ 1.0", f"{two.started_s:.2f}"),
        ("each further model, MiB", "≤ 40", f"{further_model_mib(images):.0f}"),
    ]


def further_model_mib(images: Sequence[bytes]) -> float:
    """Return what a second model takes: a copy of the served one with another version."""
    sizes = []
    folder = locate(Settings.from_environ(os.environ))
    with tempfile.TemporaryDirectory() as temporary:
        copy, models = Path(temporary) / "copy", Path(temporary) / "models.toml"
        shutil.copytree(folder, copy)
        config = json.loads((copy / CONFIG).read_text())
        (copy / CONFIG).write_text(json.dumps(config | {"version": "0.0.0"}))
        for bundles in ([folder], [folder, copy]):
            models.write_text(
                "".join(f"[[models]]\nbundle = {json.dumps(str(one.resolve()))}\n" for one in bundles)
            )
            with serve(environ={"LEUKO_MODELS": str(models)}) as server:
                load(HOST, server.port, images, 16, 2.0)
                sizes.append(server.memory_mib() or nan)
    return sizes[1] - sizes[0]


def measure_service(
    server: Server,
    images: Sequence[bytes],
    labels: Sequence[str],
    ceiling: Ceiling,
    before: Before,
    streams: int,
) -> list[Line]:
    port = server.port
    load(HOST, port, images, 16, 1.0)
    one, sixteen, many = (load(HOST, port, images, n, SECONDS) for n in (1, 16, 64))
    half = paced(port, images, 64, 0.5 * many.images_per_second)
    over = paced(port, images, CROWD, OVERLOAD * many.images_per_second)
    evaluated, beside = evaluate_beside(port, images, labels)
    engine = max(ceiling.engine.values())
    memory = server.memory_mib() or nan
    simulated = simulated_p99_ms(streams, ceiling.series, 0.5 * many.images_per_second)
    return [
        (
            "/predict, 16 connections ÷ ceiling of 2.0.0",
            "≥ 2.0",
            ratio(sixteen.images_per_second, before.ceiling),
        ),
        (
            "/predict, 64 connections ÷ ceiling of 2.0.0",
            "≥ 2.0",
            ratio(many.images_per_second, before.ceiling),
        ),
        ("/predict, 16 connections ÷ ceiling", "≥ 0.92", ratio(sixteen.images_per_second, ceiling.series)),
        ("/predict, 64 connections ÷ ceiling", "≥ 0.92", ratio(many.images_per_second, ceiling.series)),
        (
            "/predict, 16 connections ÷ naive at 224 pixels",
            "≥ 10",
            ratio(sixteen.images_per_second, before.naive),
        ),
        ("p50 at 1 connection ÷ in process", "≤ 1.15", ratio(one.p50_ms, 1000 / ceiling.alone)),
        ("p99 at half load ÷ simulated queue", "≤ 1.3", ratio(half.p99_ms, simulated)),
        ("goodput at 5 × capacity ÷ peak", "≥ 0.92", ratio(over.images_per_second, many.images_per_second)),
        ("/evaluate ÷ engine alone", "≥ 0.85", ratio(evaluated, engine)),
        ("/predict p99 beside /evaluate ÷ without", "≤ 3", ratio(beside, one.p99_ms)),
        ("one more image of 64 ÷ engine", "≤ 1.2", ratio(marginal_s(port, images), 1 / engine)),
        ("memory under load, MiB", "≤ 250", f"{memory:.0f}"),
        ("start to ready, s", "≤ 1.0", f"{server.started_s:.2f}"),
        ("wait beside 480 MiB of corrupt images, ms", "≤ 25", f"{longest_wait_ms(port):.0f}"),
        ("failed requests", "0", str(one.failures + sixteen.failures + many.failures)),
        ("wrong answers of 16 at a time", "0", str(asyncio.run(wrong_answers(port, images)))),
    ]


def longest_wait_ms(port: int) -> float:
    request = corrupt_images(480)  # made beforehand: it would hold up the probe, which runs in this process
    with probing(port) as waits:
        send(port, request)
    return waits.longest_ms


def simulated_p99_ms(streams: int, capacity: float, per_second: float, requests: int = 100_000) -> float:
    """Return the p99 of a queue with Poisson arrivals, `streams` servers and no cost but their work."""
    arrivals = np.random.default_rng(0).exponential(1 / per_second, requests).cumsum()
    free = [0.0] * streams  # when each server is next free
    seconds = []
    for arrival in arrivals:
        done = max(arrival, heapq.heappop(free)) + streams / capacity
        heapq.heappush(free, done)
        seconds.append(done - arrival)
    return float(1000 * np.percentile(seconds, 99))


def paced(port: int, images: Sequence[bytes], clients: int, per_second: float) -> Load:
    """Send about `per_second` requests at random times: a Poisson process while responses are fast."""
    return load(HOST, port, images, clients, SECONDS, clients / per_second)


def evaluate_beside(port: int, images: Sequence[bytes], labels: Sequence[str]) -> tuple[float, float]:
    """Return the images/s of /evaluate alone, and the p99 of /predict in ms while /evaluate runs."""

    def evaluate(times: int) -> Any:
        archive = labelled_zip(images, labels, times)
        files = {"archive": ("cells.zip", archive)}
        return (
            httpx.post(f"http://{HOST}:{port}/evaluate", files=files, timeout=300).raise_for_status().json()
        )

    evaluate(1)  # the first evaluation imports modules for the report
    alone: float = evaluate(EVALUATED)["images_per_second"]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(evaluate, ceil(2 * SECONDS * alone / len(images)))  # longer than the load
        beside = load(HOST, port, images, 1, SECONDS)
        still = not running.done()
        running.result()
    if not still:
        raise SystemExit("/evaluate ended before the load on /predict")
    return alone, beside.p99_ms


def labelled_zip(images: Sequence[bytes], labels: Sequence[str], times: int) -> bytes:
    """Return a ZIP with a folder for each class. The images are of the labels in turn, as from `draw`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for turn in range(times):
            for index, image in enumerate(images):
                archive.writestr(f"{labels[index % len(labels)]}/{turn}-{index}.jpg", image)
    return file.getvalue()


def marginal_s(port: int, images: Sequence[bytes]) -> float:
    """Return the seconds that each image after the first adds to a request with all images."""
    with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=60) as client:

        def seconds(images: Sequence[bytes]) -> float:
            body = form(images)
            start = perf_counter()
            client.post("/predict", content=body, headers={"Content-Type": MULTIPART}).raise_for_status()
            return perf_counter() - start

        alone = median(seconds(images[:1]) for _ in range(20))
        together = median(seconds(images) for _ in range(8))
    return (together - alone) / (len(images) - 1)


async def wrong_answers(port: int, images: Sequence[bytes], rounds: int = 4) -> int:
    """Count the responses under load that differ from those without load, as a mix-up in a batch would."""
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=60) as client:

        async def ask(image: bytes) -> dict[str, float]:
            answer = await client.post("/predict", content=image, headers={"Content-Type": "image/jpeg"})
            answer.raise_for_status()
            probabilities: dict[str, float] = answer.json()["predictions"][0]["probabilities"]
            return probabilities

        expected = [await ask(image) for image in images]
        if len({json.dumps(probabilities) for probabilities in expected}) < len(images):
            raise SystemExit("two images have the same probabilities, so a mix-up could not be detected")
        slots = asyncio.Semaphore(16)

        async def check(index: int) -> bool:
            async with slots:
                received = await ask(images[index])
            return any(abs(received[label] - expected[index][label]) > TOLERANCE for label in received)

        return sum(await asyncio.gather(*(check(n % len(images)) for n in range(rounds * len(images)))))


def ratio(value: float, base: float) -> str:
    """Return a ratio; nothing to compare with on a machine too busy to answer at all."""
    return f"{value / base:.2f}" if base else "–"


def table(lines: Sequence[Line], ceiling: Ceiling, before: Before) -> Table:
    result = Table(
        "measure",
        "target",
        "result",
        title=f"images/s: ceiling {ceiling.series:.0f}, engine {max(ceiling.engine.values()):.0f}, "
        f"ceiling of bundle 2.0.0 {before.ceiling:.0f}, naive FastAPI with it {before.naive:.0f}",
    )
    for line in lines:
        result.add_row(*line)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
