"""Score a labelled set of images with the running service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.archives.images import StoredImage
from app.errors import LeukoError, Unusable
from app.evaluation.report import Report, evaluate
from app.inference.fair_queue import Caller
from app.inference.service import Service
from app.inference.threads import LONG
from app.observability.request_context import RequestContext


@dataclass
class Progress:
    total: int
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def images_per_second(self) -> float:
        return self.done / self.seconds if self.done else 0.0


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction. index: into the images; predicted: index of the class."""

    index: int
    predicted: int
    confidence: float


@dataclass(frozen=True)
class Scored:
    report: Report
    mistakes: list[Mistake]
    failures: dict[int, LeukoError]  # by index into the images


async def score(
    service: Service,
    images: Sequence[StoredImage],
    groups: Sequence[Hashable] | None,
    progress: Progress,
    context: RequestContext,
    *,
    deadline: float,
) -> Scored:
    """Classify the images and evaluate the predictions against their labels.

    Each image is read when its batch runs, so that memory use does not grow with their number. Images that
    cannot be classified are left out of the report and listed in `failures`; raise Unusable if none can be
    classified. When cancelled, stop at once.
    """
    caller, stages = Caller.of(context), context.stages
    labels = service.classifier.bundle.labels
    probabilities = np.full((len(images), len(labels)), np.nan)
    failures: dict[int, LeukoError] = {}
    kinds: dict[tuple[type[LeukoError], str], LeukoError] = {}
    size = service.batcher.max_batch
    starts = iter(range(0, len(images), size))

    async def work() -> None:
        for start in starts:
            reads = [image.read for image in images[start : start + size]]
            outcomes = await service.classify_bulk(reads, caller=caller, deadline=deadline, stages=stages)
            for index, outcome in enumerate(outcomes, start):
                if isinstance(outcome, LeukoError):
                    # Not the exception itself: its traceback keeps the image. Most are alike.
                    alike = (type(outcome), outcome.detail)
                    failures[index] = kinds.setdefault(alike, type(outcome)(outcome.detail))
                else:
                    probabilities[index] = outcome.probabilities
            progress.done += len(outcomes)

    # For each worker of the batcher one batch that runs and one that waits.
    workers = [asyncio.create_task(work()) for _ in range(2 * service.batcher.workers)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return await LONG.run(lambda: judge(labels, images, groups, probabilities, failures), context)


def judge(
    names: Sequence[str],
    images: Sequence[StoredImage],
    groups: Sequence[Hashable] | None,
    probabilities: NDArray[np.float64],
    failures: dict[int, LeukoError],
) -> Scored:
    """Evaluate predictions against the images' labels.

    probabilities [n, classes]: NaN for an image that failed. groups [n]: source photo of each image. Raise
    Unusable if all images failed.
    """
    classified = np.flatnonzero(~np.isnan(probabilities[:, 0])).tolist()
    if not classified:
        first = next(iter(failures.values()))
        raise Unusable(
            f"none of {len(images)} images could be classified, so there is nothing to evaluate; "
            f"first error: {first.detail}"
        )
    soft = probabilities[classified]
    hard = soft.argmax(axis=1)
    true = np.array([images[index].label for index in classified])
    classified_groups = None if groups is None else [groups[index] for index in classified]
    report = evaluate(true, hard, soft, names=names, groups=classified_groups)
    mistakes = [
        Mistake(classified[row], int(hard[row]), float(soft[row, hard[row]]))
        for row in np.flatnonzero(true != hard)
    ]
    return Scored(report, mistakes, dict(sorted(failures.items())))
