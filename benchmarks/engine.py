"""Measure what this machine can do without HTTP: decoding, the network, and both in series."""

from __future__ import annotations

import argparse
import io
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from app import __version__
from app.engine.classifier import Classifier, load_classifier
from app.imaging.decode import decode
from app.imaging.framing import Cell, Pixels, Preprocessing, choose_frame, frame_cell
from app.imaging.nucleus import Nucleus, find_nucleus
from app.imaging.quality import measure as measure_quality
from app.imaging.resize import resize
from app.imaging.thumbnail import Thumbnail
from app.registry.fetch import load
from app.samples.smear import draw_smear
from app.settings import Settings

BATCHES = (1, 8, 32)
TURNS = 5


@dataclass(frozen=True)
class Ceiling:
    """Images per second."""

    quality: float  # judge the picture's quality, once it is framed, one thread
    framing: float  # find the nucleus, crop, resize, judge, white point, one thread
    decoding: float  # decode and frame, one thread
    pool: float  # the same, with the service's decode workers
    engine: dict[int, float]  # by batch size
    alone: float  # decode and classify one image at a time
    series: float  # the pool, then the engine, 32 images at a time: the ceiling for a service


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="measured for each line of the table [%(default)s]"
    )
    parser.add_argument(
        "--against", type=Path, metavar="BUNDLE", help="compare the engine's rate with this bundle's instead"
    )
    arguments = parser.parse_args()
    seconds: float = arguments.seconds
    console = Console()
    settings, classifier = introduce(console)
    if arguments.against:
        other = load_classifier(arguments.against, settings.engine, settings.threads)
        console.print(against(classifier, other, seconds))
    else:
        console.print(table(measure(classifier, workers(settings), seconds)))
    return 0


def against(classifier: Classifier, other: Classifier, seconds: float) -> Table:
    """Measure the engines of two bundles in turns; rates are medians of `TURNS`."""
    names = [f"{each.bundle.name} {each.bundle.version}" for each in (classifier, other)]
    result = Table("images/s", *names, "÷, median", "÷, range")
    inputs = [(each, drawn(each, max(BATCHES))) for each in (classifier, other)]
    for n in BATCHES:
        pairs = [
            [engine_rate(each, pixels[:n], seconds / TURNS) for each, pixels in inputs] for _ in range(TURNS)
        ]
        rates = [f"{median(column):.0f}" for column in zip(*pairs, strict=True)]
        ratios = [one / two for one, two in pairs]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        result.add_row(f"batch {n}", *rates, f"{median(ratios):.2f}", spread)
    return result


def drawn(classifier: Classifier, n: int) -> Pixels:
    images = [decode(data) for data in draw(classifier.bundle.labels, n)]
    return np.stack([frame_cell(image, classifier.bundle.preprocessing).pixels for image in images])


def measure(classifier: Classifier, threads: int, seconds: float) -> Ceiling:
    images = draw(classifier.bundle.labels, max(BATCHES))

    def frame(image: Image.Image) -> Cell:
        return frame_cell(image, classifier.bundle.preprocessing)

    def prepare(data: bytes) -> Cell:
        return frame(decode(data))

    decoded = [decode(data) for data in images]
    judged = [judgeable(image, classifier.bundle.preprocessing) for image in decoded]
    pixels = np.stack([prepare(data).pixels for data in images])
    with ThreadPoolExecutor(threads) as pool:
        return Ceiling(
            quality=rate(lambda: [measure_quality(*parts) for parts in judged], len(images), seconds),
            framing=rate(lambda: [frame(image) for image in decoded], len(images), seconds),
            decoding=rate(lambda: [prepare(data) for data in images], len(images), seconds),
            pool=rate(lambda: list(pool.map(prepare, images)), len(images), seconds),
            engine={n: engine_rate(classifier, pixels[:n], seconds) for n in BATCHES},
            alone=rate(lambda: classifier.classify([prepare(images[0])]), 1, seconds),
            series=rate(lambda: classifier.classify(list(pool.map(prepare, images))), len(images), seconds),
        )


def judgeable(
    image: Image.Image, preprocessing: Preprocessing
) -> tuple[Thumbnail, Nucleus | None, Image.Image]:
    """Return what a picture's quality is measured on."""
    thumbnail = Thumbnail.of(image)
    nucleus = find_nucleus(image, thumbnail)
    size = (preprocessing.size, preprocessing.size)
    frame = choose_frame(image.size, nucleus, preprocessing)
    return thumbnail, nucleus, resize(image, size, Image.Resampling.BILINEAR, frame.box)


def engine_rate(classifier: Classifier, pixels: Pixels, seconds: float) -> float:
    return rate(lambda: classifier.engine.infer(pixels), len(pixels), seconds)


def rate(work: Callable[[], object], images: int, seconds: float) -> float:
    """Return images per second: the median over the rounds that fit into `seconds`, after a warm-up round."""
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return images / median(times)


def draw(labels: Sequence[str], count: int) -> list[bytes]:
    """Draw different JPEG images, of the size of the Kaggle data set's."""
    return [encode(labels[seed % len(labels)], seed) for seed in range(count)]


def encode(label: str, seed: int) -> bytes:
    file = io.BytesIO()
    draw_smear(label, seed=seed).save(file, "JPEG", quality=90)
    return file.getvalue()


def workers(settings: Settings) -> int:
    return settings.decode_workers or os.cpu_count() or 1


def introduce(console: Console, more: str = "") -> tuple[Settings, Classifier]:
    """Load the bundle that the LEUKO_* settings name, and print what is measured on which machine."""
    settings = Settings.from_environ(os.environ)
    classifier = load(settings)
    console.print(f"{machine(classifier)}{more}", highlight=False)
    return settings, classifier


def machine(classifier: Classifier) -> str:
    bundle, engine = classifier.bundle, classifier.engine
    return (
        f"leuko {__version__}, {bundle.name} {bundle.version}, {engine.name} on {engine.device}\n"
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}"
    )


def table(ceiling: Ceiling) -> Table:
    lines = [
        ("judge quality, 1 thread", ceiling.quality),
        ("frame, 1 thread", ceiling.framing),
        ("decode and frame, 1 thread", ceiling.decoding),
        ("decode and frame, all workers", ceiling.pool),
        *((f"engine, batch {n}", figure) for n, figure in ceiling.engine.items()),
        ("both, one image at a time", ceiling.alone),
        ("both in series (ceiling)", ceiling.series),
    ]
    result = Table("stage", "images/s", "ms/image", "of ceiling")
    for name, figure in lines:
        result.add_row(name, f"{figure:.1f}", f"{1000 / figure:.2f}", f"{figure / ceiling.series:.2f}")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
