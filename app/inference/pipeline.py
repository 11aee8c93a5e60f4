"""Pictures as they came → answers, from decoding to calibration, on the thread that asks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from app.engine.classifier import Classifier, Prediction
from app.errors import LeukoError
from app.imaging.framing import Cell, Frame
from app.inference.threads import Heartbeat
from app.observability.stages import Stages

Timed = Callable[[str], AbstractContextManager[object]]  # a stage's name → what measures it
FrameImage = Callable[[bytes, Heartbeat], Cell]  # decodes and crops; raises what `decode` raises


def untimed(_stage: str) -> AbstractContextManager[object]:
    return nullcontext()


@dataclass(frozen=True)
class InferenceItem:
    """An image not read yet; `cam` asks for a class-activation map."""

    read: Callable[[], bytes]
    cam: bool = False
    stages: Stages | None = None  # of the request that it belongs to
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Answer:
    image_sha256: str  # of the bytes as they were sent
    frame: Frame
    prediction: Prediction


class Pipeline:
    """For several threads at once: while one runs the network, another decodes."""

    def __init__(self, classifier: Classifier, frame: FrameImage, timed: Timed = untimed) -> None:
        self._classifier = classifier
        self._frame_picture = frame
        self._timed = timed

    def run(
        self, items: Sequence[InferenceItem], exclusive: bool = False, heartbeat: Heartbeat = lambda: None
    ) -> list[Answer | LeukoError]:
        """What is wrong with a picture stands in its place; exclusive: nothing runs beside this.

        heartbeat: called while pictures are decoded, and as each is ready for the network.
        """
        _add("queue", items, lambda item: item.since)
        framed = []
        for item in items:
            framed.append(self._frame(item, heartbeat))
            heartbeat()
        cells = [found[1] for found in framed if not isinstance(found, LeukoError)]
        began = time.monotonic()
        predictions = iter(self._classify(cells, exclusive) if cells else ())
        _add("infer", items, lambda _: began)
        return [
            found if isinstance(found, LeukoError) else _answer(*found, next(predictions)) for found in framed
        ]

    def _frame(self, item: InferenceItem, heartbeat: Heartbeat) -> tuple[str, Cell] | LeukoError:
        try:
            data = item.read()
            with self._timed("decode"), _time("decode", item):
                cell = self._frame_picture(data, heartbeat)
        except LeukoError as error:
            return error
        return hashlib.sha256(data).hexdigest(), replace(cell, cam=item.cam)

    def _classify(self, cells: Sequence[Cell], exclusive: bool) -> Sequence[Prediction | LeukoError]:
        with self._timed("infer"):
            return self._classifier.classify(cells, exclusive=exclusive)


def _time(stage: str, item: InferenceItem) -> AbstractContextManager[object]:
    return nullcontext() if item.stages is None else item.stages.time(stage)


def _add(stage: str, items: Sequence[InferenceItem], began: Callable[[InferenceItem], float]) -> None:
    """Until now, for each request that has a picture here."""
    requests = {item.stages: item for item in items if item.stages is not None}
    for stages, item in requests.items():
        stages.add(stage, began(item), time.monotonic())


def _answer(sha256: str, cell: Cell, result: Prediction | LeukoError) -> Answer | LeukoError:
    return result if isinstance(result, LeukoError) else Answer(sha256, cell.frame, result)
