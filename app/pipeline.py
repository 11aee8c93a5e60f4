"""Pictures as they came → answers, from decoding to calibration, on the thread that asks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from app.errors import LeukoError
from app.vision.classifier import Classifier, Prediction
from app.vision.decode import ImageLimits, decode
from app.vision.framing import Cell, Frame, frame_cell

Timed = Callable[[str], AbstractContextManager[object]]  # a stage's name → what measures it


@dataclass(frozen=True)
class Picture:
    """An image not read yet; `cam` asks for a class-activation map."""

    read: Callable[[], bytes]
    cam: bool = False


@dataclass(frozen=True)
class Answer:
    image_sha256: str  # of the bytes as they were sent
    frame: Frame
    prediction: Prediction


class Pipeline:
    """For several threads at once: while one runs the network, another decodes."""

    def __init__(
        self, classifier: Classifier, limits: ImageLimits, timed: Timed = lambda _: nullcontext()
    ) -> None:
        self._classifier = classifier
        self._limits = limits
        self._timed = timed

    def run(
        self, pictures: Sequence[Picture], alone: bool = False, beat: Callable[[], object] = lambda: None
    ) -> list[Answer | LeukoError]:
        """What is wrong with a picture stands in its place; alone: nothing runs beside this.

        beat: called as each picture is ready for the network.
        """
        framed = []
        for picture in pictures:
            framed.append(self._frame(picture))
            beat()
        cells = [found[1] for found in framed if not isinstance(found, LeukoError)]
        predictions = iter(self._classify(cells, alone) if cells else ())
        return [
            found if isinstance(found, LeukoError) else _answer(*found, next(predictions)) for found in framed
        ]

    def _frame(self, picture: Picture) -> tuple[str, Cell] | LeukoError:
        try:
            data = picture.read()
            with self._timed("decode"):
                image = decode(data, self._limits)
                cell = frame_cell(image, self._classifier.bundle.preprocessing, cam=picture.cam)
        except LeukoError as error:
            return error
        return hashlib.sha256(data).hexdigest(), cell

    def _classify(self, cells: Sequence[Cell], alone: bool) -> Sequence[Prediction | LeukoError]:
        with self._timed("infer"):
            return self._classifier.classify(cells, alone=alone)


def _answer(sha256: str, cell: Cell, result: Prediction | LeukoError) -> Answer | LeukoError:
    return result if isinstance(result, LeukoError) else Answer(sha256, cell.frame, result)
