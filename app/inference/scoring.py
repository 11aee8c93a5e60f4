"""A labelled set of images through the running service: decoded, classified, scored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.archives.images import StoredImage
from app.errors import LeukoError, Unusable
from app.evaluation.report import Report, evaluate
from app.inference.service import Service
from app.observability.stages import Stages


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
    """index: into the images; predicted: index of the class."""

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
    groups: Sequence[str] | None,
    progress: Progress,
    *,
    deadline: float,
    stages: Stages | None = None,
) -> Scored:
    """Reads each image only when its turn is near, so that memory stays flat; cancelled, it stops at once.

    Images that cannot be classified are left out and listed; Unusable where none is left.
    """
    labels = service.classifier.bundle.labels
    probabilities = np.full((len(images), len(labels)), np.nan)
    failures: dict[int, LeukoError] = {}
    size = service.batcher.max_batch
    starts = iter(range(0, len(images), size))

    async def work() -> None:
        for start in starts:
            reads = [image.read for image in images[start : start + size]]
            found = await service.classify_bulk(reads, deadline=deadline, stages=stages)
            for index, one in enumerate(found, start):
                if isinstance(one, LeukoError):
                    failures[index] = one
                else:
                    probabilities[index] = one.probabilities
            progress.done += len(found)

    # One batch for each worker, and one behind it.
    workers = [asyncio.create_task(work()) for _ in range(2 * service.batcher.workers)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return await asyncio.to_thread(judge, labels, images, groups, probabilities, failures)


def judge(
    names: Sequence[str],
    images: Sequence[StoredImage],
    groups: Sequence[str] | None,
    probabilities: NDArray[np.float64],
    failures: dict[int, LeukoError],
) -> Scored:
    """probabilities [n, classes], NaN where an image failed; Unusable where all did."""
    kept = np.flatnonzero(~np.isnan(probabilities[:, 0])).tolist()
    if not kept:
        first = next(iter(failures.values()))
        raise Unusable(
            f"none of {len(images)} images could be classified, so there is nothing to evaluate; "
            f"of the first: {first.detail}"
        )
    soft = probabilities[kept]
    hard = soft.argmax(axis=1)
    true = np.array([images[index].label for index in kept])
    units = None if groups is None else [groups[index] for index in kept]
    report = evaluate(true, hard, soft, names=names, groups=units)
    mistakes = [
        Mistake(kept[row], int(hard[row]), float(soft[row, hard[row]]))
        for row in np.flatnonzero(true != hard)
    ]
    return Scored(report, mistakes, dict(sorted(failures.items())))
