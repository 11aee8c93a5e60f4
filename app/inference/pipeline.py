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
from app.inference.threads import Beat
from app.observability.stages import Stages

Timed = Callable[[str], AbstractContextManager[object]]  # a stage's name → what measures it
FramePicture = Callable[[bytes, Beat], Cell]  # decodes and crops; raises what `decode` raises


def untimed(_stage: str) -> AbstractContextManager[object]:
    return nullcontext()


@dataclass(frozen=True)
class Picture:
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

    def __init__(self, classifier: Classifier, frame: FramePicture, timed: Timed = untimed) -> None:
        self._classifier = classifier
        self._frame_picture = frame
        self._timed = timed

    def run(
        self, pictures: Sequence[Picture], alone: bool = False, beat: Beat = lambda: None
    ) -> list[Answer | LeukoError]:
        """What is wrong with a picture stands in its place; alone: nothing runs beside this.

        beat: called while pictures are decoded, and as each is ready for the network.
        """
        _add("queue", pictures, lambda picture: picture.since)
        framed = []
        for picture in pictures:
            framed.append(self._frame(picture, beat))
            beat()
        cells = [found[1] for found in framed if not isinstance(found, LeukoError)]
        began = time.monotonic()
        predictions = iter(self._classify(cells, alone) if cells else ())
        _add("infer", pictures, lambda _: began)
        return [
            found if isinstance(found, LeukoError) else _answer(*found, next(predictions)) for found in framed
        ]

    def _frame(self, picture: Picture, beat: Beat) -> tuple[str, Cell] | LeukoError:
        try:
            data = picture.read()
            with self._timed("decode"), _time("decode", picture):
                cell = self._frame_picture(data, beat)
        except LeukoError as error:
            return error
        return hashlib.sha256(data).hexdigest(), replace(cell, cam=picture.cam)

    def _classify(self, cells: Sequence[Cell], alone: bool) -> Sequence[Prediction | LeukoError]:
        with self._timed("infer"):
            return self._classifier.classify(cells, alone=alone)


def _time(stage: str, picture: Picture) -> AbstractContextManager[object]:
    return nullcontext() if picture.stages is None else picture.stages.time(stage)


def _add(stage: str, pictures: Sequence[Picture], began: Callable[[Picture], float]) -> None:
    """Until now, for each request that has a picture here."""
    requests = {picture.stages: picture for picture in pictures if picture.stages is not None}
    for stages, picture in requests.items():
        stages.add(stage, began(picture), time.monotonic())


def _answer(sha256: str, cell: Cell, result: Prediction | LeukoError) -> Answer | LeukoError:
    return result if isinstance(result, LeukoError) else Answer(sha256, cell.frame, result)
