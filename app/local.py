"""Images on this machine → answers, in order and in bounded memory, without the service."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from app.decoders import Framed
from app.errors import LeukoError
from app.service import Answer
from app.sources import Source
from app.vision.classifier import Classifier, Prediction
from app.vision.decode import ImageLimits, decode
from app.vision.framing import Preprocessing, frame_cell

BATCH = 32  # images

Prepared = tuple[Source, Framed | LeukoError]


@dataclass(frozen=True)
class Outcome:
    """What came of one image."""

    source: Source
    answer: Answer | LeukoError


def classify(
    classifier: Classifier, sources: Iterable[Source], limits: ImageLimits, workers: int = 0
) -> Iterator[Outcome]:
    """One outcome a source, in order; the next batch is decoded while the engine runs this one."""
    preprocessing = classifier.bundle.preprocessing
    remaining = iter(sources)
    ahead: deque[list[Future[Prepared]]] = deque()
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        while batch := [
            pool.submit(_frame, source, preprocessing, limits) for source in islice(remaining, BATCH)
        ]:
            ahead.append(batch)
            if len(ahead) > 1:
                yield from _outcomes(classifier, ahead.popleft())
        while ahead:
            yield from _outcomes(classifier, ahead.popleft())


def _frame(source: Source, preprocessing: Preprocessing, limits: ImageLimits) -> Prepared:
    try:
        data = source.read()
        cell = frame_cell(decode(data, limits), preprocessing)
    except LeukoError as error:
        return source, error
    return source, Framed(hashlib.sha256(data).hexdigest(), cell)


def _outcomes(classifier: Classifier, batch: Sequence[Future[Prepared]]) -> Iterator[Outcome]:
    prepared = [future.result() for future in batch]
    cells = [framed.cell for _, framed in prepared if isinstance(framed, Framed)]
    results = iter(classifier.classify(cells) if cells else ())
    for source, framed in prepared:
        if isinstance(framed, LeukoError):
            yield Outcome(source, framed)
            continue
        result = next(results)
        if isinstance(result, Prediction):
            yield Outcome(source, Answer(framed.sha256, framed.cell.frame, result))
        else:
            yield Outcome(source, result)
