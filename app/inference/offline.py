"""Classify images on this machine without the service, in order and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from app.archives.images import StoredImage
from app.engine.classifier import Classifier
from app.errors import LeukoError
from app.imaging.decode import decode
from app.imaging.framing import Cell, frame_cell, frame_cells
from app.imaging.limits import ImageLimits
from app.inference.pipeline import FrameAll, FrameImage, InferenceItem, Pipeline, Result
from app.inference.threads import Heartbeat


@dataclass(frozen=True)
class Outcome:
    """An image with its answer, or the error that it failed with."""

    image: StoredImage
    answer: Result | LeukoError


def classify(
    classifier: Classifier,
    images: Iterable[StoredImage],
    limits: ImageLimits,
    workers: int = 0,
    *,
    max_cells: int | None = None,
) -> Iterator[Outcome]:
    """Yield one outcome per image, in order.

    max_cells: classify all leukocytes of each image, up to this many; None: an image is one cell.
    """
    preprocessing = classifier.bundle.preprocessing

    def frame(data: bytes, _: Heartbeat) -> Cell:
        return frame_cell(decode(data, limits), preprocessing)

    def frame_all(data: bytes, _: Heartbeat) -> list[Cell]:
        return frame_cells(decode(data, limits), preprocessing, max_cells or 0)

    yield from run(classifier, images, frame, workers, frame_all=None if max_cells is None else frame_all)


def run(
    classifier: Classifier,
    images: Iterable[StoredImage],
    frame: FrameImage,
    workers: int = 0,
    *,
    frame_all: FrameAll | None = None,
) -> Iterator[Outcome]:
    """Yield as `classify` does, decoding with `frame`; hold at most two batches per worker, and one more.

    workers: threads; 0: as many as suit the engine. frame_all: decodes instead, to classify all leukocytes.
    """
    pipeline = Pipeline(classifier, frame, frame_all=frame_all)
    workers = workers or classifier.engine.workers
    remaining = iter(images)
    ahead: deque[tuple[list[StoredImage], Future[list[Result | LeukoError]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        while batch := list(islice(remaining, classifier.engine.batch)):
            items = [InferenceItem(image.read, all_cells=frame_all is not None) for image in batch]
            ahead.append((batch, pool.submit(pipeline.run, items)))
            if len(ahead) > 2 * workers:
                yield from _outcomes(*ahead.popleft())
        while ahead:
            yield from _outcomes(*ahead.popleft())


def _outcomes(batch: Sequence[StoredImage], answers: Future[list[Result | LeukoError]]) -> Iterator[Outcome]:
    for image, answer in zip(batch, answers.result(), strict=True):
        yield Outcome(image, answer)
