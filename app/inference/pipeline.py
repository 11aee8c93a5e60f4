"""Decode and classify a batch of images on the calling thread."""

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

Timed = Callable[[str], AbstractContextManager[object]]  # name of a stage → a context that times it
# Whether it is the first of its run → why an image must not be decoded now, or None.
Hold = Callable[[bool], LeukoError | None]
FrameImage = Callable[[bytes, Heartbeat], Cell]  # decodes and crops; raises what `decode` raises


def untimed(_stage: str) -> AbstractContextManager[object]:
    return nullcontext()


def unheld(_first: bool) -> LeukoError | None:
    return None


@dataclass(frozen=True)
class InferenceItem:
    """An image in the queue, read when its batch runs. cam: return a class-activation map too."""

    read: Callable[[], bytes]
    cam: bool = False
    hold: Hold = unheld
    stages: Stages | None = None  # of the request that the image belongs to
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Answer:
    image_sha256: str  # of the bytes as uploaded
    frame: Frame
    prediction: Prediction


class Pipeline:
    """Decode, crop and classify batches; thread-safe: one thread decodes while another runs the network."""

    def __init__(self, classifier: Classifier, frame_image: FrameImage, timed: Timed = untimed) -> None:
        self._classifier = classifier
        self._frame_image = frame_image
        self._timed = timed

    def run(
        self, items: Sequence[InferenceItem], exclusive: bool = False, heartbeat: Heartbeat = lambda: None
    ) -> list[Answer | LeukoError]:
        """Return an answer per item, in order, or the error of an item that cannot be classified.

        exclusive: no other run is under way. heartbeat: called while images are decoded, and after each.
        """
        _add("queue", items, lambda item: item.since)
        framed: list[tuple[str, Cell] | LeukoError] = []
        for item in items:
            framed.append(item.hold(not framed) or self._frame(item, heartbeat))
            heartbeat()
        cells = [image[1] for image in framed if not isinstance(image, LeukoError)]
        began = time.monotonic()
        results = iter(self._classify(cells, exclusive) if cells else ())
        _add("infer", items, lambda _: began)
        answers: list[Answer | LeukoError] = []
        for image in framed:
            if isinstance(image, LeukoError):
                answers.append(image)
                continue
            sha256, cell = image
            result = next(results)
            answers.append(result if isinstance(result, LeukoError) else Answer(sha256, cell.frame, result))
        return answers

    def _frame(self, item: InferenceItem, heartbeat: Heartbeat) -> tuple[str, Cell] | LeukoError:
        """Return the SHA-256 of the image and its framed cell."""
        try:
            data = item.read()
            with self._timed("decode"), item.stages.time("decode") if item.stages else nullcontext():
                cell = self._frame_image(data, heartbeat)
        except LeukoError as error:
            return error
        return hashlib.sha256(data).hexdigest(), replace(cell, cam=item.cam)

    def _classify(self, cells: Sequence[Cell], exclusive: bool) -> Sequence[Prediction | LeukoError]:
        with self._timed("infer"):
            return self._classifier.classify(cells, exclusive=exclusive)


def _add(stage: str, items: Sequence[InferenceItem], began: Callable[[InferenceItem], float]) -> None:
    """Record a stage that ends now, once for each request that has an item in the batch."""
    requests = {item.stages: item for item in items if item.stages is not None}
    for stages, item in requests.items():
        stages.add(stage, began(item), time.monotonic())
