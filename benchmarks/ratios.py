"""Print one table of ratios: the service ÷ its engine, and ÷ a service without batches."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.client import MULTIPART, Load, form, load, tool
from benchmarks.engine import Ceiling, draw, introduce, measure, workers
from benchmarks.server import HOST, Server, naive, serve

IMAGES = 64
SECONDS = 8.0  # for each load
CROWD = 1000  # clients; more than the queue holds
OVERLOAD = 5.0  # times the capacity of the service
EVALUATED = 30  # copies of each image in the archive for /evaluate
TOLERANCE = 0.02  # of probabilities: int8 rounds slightly differently by batch size

Line = tuple[str, str, str]  # measure, target, result


def main() -> int:
    console = Console()
    settings, classifier = introduce(console, f", load by {tool()}")
    labels = classifier.bundle.labels
    images = draw(labels, IMAGES)
    ceiling = measure(classifier, workers(settings), 3.0)
    del classifier  # so that its threads and memory do not slow the services
    with serve(naive, "/docs") as server:
        load(HOST, server.port, images, 16, 1.0)
        without_batches = load(HOST, server.port, images, 16, SECONDS).images_per_second
    with serve() as server:
        lines = measure_service(server, images, labels, ceiling, without_batches)
    console.print(table(lines, ceiling, without_batches))
    return 0


def measure_service(
    server: Server, images: Sequence[bytes], labels: Sequence[str], ceiling: Ceiling, without_batches: float
) -> list[Line]:
    port = server.port
    load(HOST, port, images, 16, 1.0)
    one, sixteen, many = (load(HOST, port, images, n, SECONDS) for n in (1, 16, 64))
    half = paced(port, images, 64, 0.5 * many.images_per_second)
    over = paced(port, images, CROWD, OVERLOAD * many.images_per_second)
    evaluated, beside = evaluate_beside(port, images, labels)
    engine = max(ceiling.engine.values())
    return [
        ("/predict, 16 connections ÷ ceiling", "≥ 0.88", ratio(sixteen.images_per_second, ceiling.series)),
        ("/predict, 64 connections ÷ ceiling", "≥ 0.88", ratio(many.images_per_second, ceiling.series)),
        (
            "/predict, 16 connections ÷ naive FastAPI",
            "≥ 6",
            ratio(sixteen.images_per_second, without_batches),
        ),
        ("p50 at 1 connection ÷ in process", "≤ 1.25", ratio(one.p50_ms, 1000 / ceiling.alone)),
        ("p99 at half load ÷ p50 at 1 connection", "≤ 3", ratio(half.p99_ms, one.p50_ms)),
        ("goodput at 5 × capacity ÷ peak", "≥ 0.90", ratio(over.images_per_second, many.images_per_second)),
        ("/evaluate ÷ engine alone", "≥ 0.85", ratio(evaluated, engine)),
        ("/predict p99 beside /evaluate ÷ without", "≤ 3", ratio(beside, one.p99_ms)),
        ("one more image of 64 ÷ engine", "≤ 1.15", ratio(marginal_s(port, images), 1 / engine)),
        ("resident memory, MiB", "≤ 400", f"{server.memory_mib() or float('nan'):.0f}"),
        ("start to ready, s", "≤ 3", f"{server.started_s:.2f}"),
        ("failed requests", "0", str(one.failures + sixteen.failures + many.failures)),
        ("wrong answers of 16 at a time", "0", str(asyncio.run(wrong_answers(port, images)))),
    ]


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
        running = pool.submit(evaluate, EVALUATED)
        beside = load(HOST, port, images, 1, SECONDS)
        still = not running.done()
        running.result()
    if not still:
        raise SystemExit("/evaluate ended before the load on /predict: increase EVALUATED")
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
    return f"{value / base:.2f}"


def table(lines: Sequence[Line], ceiling: Ceiling, without_batches: float) -> Table:
    result = Table(
        "measure",
        "target",
        "result",
        title=f"images/s: ceiling {ceiling.series:.0f}, engine {max(ceiling.engine.values()):.0f}, "
        f"naive FastAPI {without_batches:.0f}",
    )
    for line in lines:
        result.add_row(*line)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
