"""Score a labelled set of images with the running service."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from app.archives.images import StoredImage
from app.engine.bundle import Bundle
from app.engine.classifier import Prediction
from app.errors import LeukoError, Unusable
from app.evaluation.copies import adapted_to, cautions_of_copies, of_two_classes
from app.evaluation.report import Report, evaluate
from app.evaluation.review_thresholds import Rules
from app.evaluation.verification import TARGET, Answers, Verification, verify
from app.imaging.quality import REASONS
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
    verification: Verification
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
    bundle = service.classifier.bundle
    answers = Answers.empty(len(images), len(bundle.labels))
    failures: dict[int, LeukoError] = {}
    kinds: dict[tuple[type[LeukoError], str], LeukoError] = {}
    size = service.batcher.max_batch
    starts = iter(range(0, len(images), size))

    hashes = [""] * len(images)

    def hashed(index: int, image: StoredImage) -> Callable[[], bytes]:
        def read() -> bytes:
            data = image.read()
            hashes[index] = hashlib.sha256(data).hexdigest()
            return data

        return read

    async def work() -> None:
        for start in starts:
            batch = enumerate(images[start : start + size], start)
            reads = [hashed(index, image) for index, image in batch]
            outcomes = await service.classify_bulk(reads, caller=caller, deadline=deadline, stages=stages)
            for index, outcome in enumerate(outcomes, start):
                if isinstance(outcome, LeukoError):
                    # Not the exception itself: its traceback keeps the image. Most are alike.
                    alike = (type(outcome), outcome.detail)
                    failures[index] = kinds.setdefault(alike, type(outcome)(outcome.detail))
                else:
                    record(answers, index, outcome)
            progress.done += len(outcomes)

    # For each worker of the batcher one batch that runs and one that waits.
    workers = [asyncio.create_task(work()) for _ in range(2 * service.batcher.workers)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()

    def judged() -> Scored:
        others = service.classifier.scores_of_others
        return judge(bundle, images, groups, answers, failures, hashes, others=others)

    return await LONG.run(judged, context)


def record(answers: Answers, index: int, prediction: Prediction) -> None:
    answers.probabilities[index] = prediction.probabilities
    answers.ood_scores[index] = prediction.ood_score
    answers.quality[index] = not set(REASONS).isdisjoint(prediction.review_reasons)
    if answers.reviewed is not None:
        answers.reviewed[index] = prediction.review
    if answers.familiar is not None:
        answers.familiar[index] = prediction.familiar


def judge(
    bundle: Bundle,
    images: Sequence[StoredImage],
    groups: Sequence[Hashable] | None,
    answers: Answers,
    failures: dict[int, LeukoError],
    hashes: Sequence[str] = (),
    target: float = TARGET,
    chosen: Rules | None = None,
    others: NDArray[np.float64] | None = None,
) -> Scored:
    """Evaluate answers against the images' labels.

    hashes [n]: SHA-256 of each image, empty for one that was not read. groups [n]: source photo, slide or
    patient of each image. target, chosen, others: see `verify`. Raise Unusable if all images failed.
    """
    classified = np.flatnonzero(~np.isnan(answers.ood_scores)).tolist()
    if not classified:
        first = next(iter(failures.values()))
        raise Unusable(
            f"none of {len(images)} images could be classified, so there is nothing to evaluate; "
            f"first error: {first.detail}"
        )
    done = answers.take(classified)
    soft = done.probabilities
    hard = soft.argmax(axis=1)
    true = np.array([images[index].label for index in classified])
    classified_groups = None if groups is None else [groups[index] for index in classified]
    report = evaluate(true, hard, soft, names=bundle.labels, groups=classified_groups)
    verification = verify(
        true,
        done,
        bundle.rules,
        names=bundle.labels,
        groups=classified_groups,
        target=target,
        chosen=chosen,
        others=others,
    )
    copies = cautions_of_copies([one for one in hashes if one], adapted_to(bundle.training))
    if twice := of_two_classes(images, hashes):
        copies.append(f"{twice[0].upper()}{twice[1:]}: one of the labels is wrong.")
    verification = replace(verification, warnings=[*copies, *verification.warnings])
    mistakes = [
        Mistake(classified[row], int(hard[row]), float(soft[row, hard[row]]))
        for row in np.flatnonzero(true != hard)
    ]
    return Scored(report, verification, mistakes, dict(sorted(failures.items())))
