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
from app.imaging.framing import frame_cell
from app.imaging.limits import ImageLimits
from app.inference.pipeline import Answer, FrameImage, InferenceItem, Pipeline


@dataclass(frozen=True)
class Outcome:
    """An image with its answer, or the error that it failed with."""

    image: StoredImage
    answer: Answer | LeukoError


def classify(
    classifier: Classifier, images: Iterable[StoredImage], limits: ImageLimits, workers: int = 0
) -> Iterator[Outcome]:
    """Yield one outcome per image, in order."""
    preprocessing = classifier.bundle.preprocessing
    yield from run(
        classifier, images, lambda data, _: frame_cell(decode(data, limits), preprocessing), workers
    )


def run(
    classifier: Classifier, images: Iterable[StoredImage], frame: FrameImage, workers: int = 0
) -> Iterator[Outcome]:
    """Yield as `classify` does, decoding with `frame`; hold at most two batches per worker, and one more.

    workers: threads; 0: as many as suit the engine.
    """
    pipeline = Pipeline(classifier, frame)
    workers = workers or classifier.engine.workers
    remaining = iter(images)
    ahead: deque[tuple[list[StoredImage], Future[list[Answer | LeukoError]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        while batch := list(islice(remaining, classifier.engine.batch)):
            items = [InferenceItem(image.read) for image in batch]
            ahead.append((batch, pool.submit(pipeline.run, items)))
            if len(ahead) > 2 * workers:
                yield from _outcomes(*ahead.popleft())
        while ahead:
            yield from _outcomes(*ahead.popleft())


def _outcomes(batch: Sequence[StoredImage], answers: Future[list[Answer | LeukoError]]) -> Iterator[Outcome]:
    for image, answer in zip(batch, answers.result(), strict=True):
        yield Outcome(image, answer)
