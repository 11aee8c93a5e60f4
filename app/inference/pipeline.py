"""Decode and classify a batch of images on the calling thread."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

from app.engine.classifier import Classifier, Prediction
from app.errors import LeukoError
from app.imaging.framing import Cell, Frame
from app.inference.batcher import Postponed
from app.inference.threads import Heartbeat
from app.observability.stages import Stages

Timed = Callable[[str], AbstractContextManager[object]]  # name of a stage → a context that times it
# Whether it is the first of its run → why an image must not be decoded now, or None.
Hold = Callable[[bool], LeukoError | None]
FrameImage = Callable[[bytes, Heartbeat], Cell]  # decodes and crops; raises what `decode` raises
FrameAll = Callable[[bytes, Heartbeat], list[Cell]]  # the same for all leukocytes of an image


def untimed(_stage: str) -> AbstractContextManager[object]:
    return nullcontext()


def unheld(_first: bool) -> LeukoError | None:
    return None


@dataclass(frozen=True)
class InferenceItem:
    """An image in the queue, read when its batch runs. cam: return a class-activation map too.

    all_cells: classify each of its leukocytes, not one. done: the predictions of its first cells, from runs
    that were postponed.
    """

    read: Callable[[], bytes]
    cam: bool = False
    hold: Hold = unheld
    stages: Stages | None = None  # of the request that the image belongs to
    since: float = field(default_factory=time.monotonic)
    all_cells: bool = False
    done: list[Prediction] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """One cell. cell: its number in its image if all of the image's leukocytes were asked for."""

    image_sha256: str  # of the bytes as uploaded
    frame: Frame
    prediction: Prediction
    cell: int | None = None

    @property
    def cells(self) -> tuple[Answer, ...]:
        return (self,)


@dataclass(frozen=True)
class Field:
    """All leukocytes of an image, in reading order."""

    image_sha256: str  # of the bytes as uploaded
    cells: tuple[Answer, ...]


Result = Answer | Field


def cost(result: Result) -> int:
    """Return how many images' work a result was, at least 1."""
    return max(1, len(result.cells))


@dataclass
class _Framed:
    """An item whose cells wait for the network. results: of the cells that have been there in this run."""

    item: InferenceItem
    sha256: str
    cells: list[Cell]
    results: list[Prediction | LeukoError] = field(default_factory=list)

    def outcome(self) -> Result | LeukoError:
        """Return the item's outcome; the first error if one of its cells has failed."""
        made: list[Prediction] = [*self.item.done]
        for result in self.results:
            if isinstance(result, LeukoError):
                return result
            made.append(result)
        if not self.item.all_cells:
            return Answer(self.sha256, self.cells[0].frame, made[0])
        answers = [
            Answer(self.sha256, cell.frame, prediction, number)
            for number, (cell, prediction) in enumerate(zip(self.cells, made, strict=True))
        ]
        return Field(self.sha256, tuple(answers))


class Pipeline:
    """Decode, crop and classify batches; thread-safe: one thread decodes while another runs the network.

    frame_all: as frame_image, but returns all leukocytes of an image. batch: cells in a call of the network,
    at most; None: what suits the engine.
    """

    def __init__(
        self,
        classifier: Classifier,
        frame_image: FrameImage,
        timed: Timed = untimed,
        *,
        frame_all: FrameAll | None = None,
        batch: int | None = None,
    ) -> None:
        self._classifier = classifier
        self._frame_image = frame_image
        self._frame_all = frame_all
        self._timed = timed
        self._batch = batch or classifier.engine.batch

    def run(
        self, items: Sequence[InferenceItem], exclusive: bool = False, heartbeat: Heartbeat = lambda: None
    ) -> list[Result | LeukoError]:
        """Return a result per item, in order, or the error of an item that cannot be classified.

        exclusive: no other run is under way. heartbeat: called while images are decoded, and after each. Of
        an item with many cells, further batches are only run if its `hold` allows it.
        """
        _add("queue", items, lambda item: item.since)
        outcomes: list[Result | LeukoError | None] = [None] * len(items)
        waiting: list[tuple[int, _Framed]] = []  # items with cells that have not been through the network
        cells = 0  # of these
        for place, item in enumerate(items):
            framed = item.hold(not place) or self._frame(item, heartbeat)
            heartbeat()
            if isinstance(framed, LeukoError):
                outcomes[place] = framed
                continue
            waiting.append((place, framed))
            cells += len(framed.cells) - len(item.done)
            if item.all_cells and cells >= self._batch:
                # Before the next image is decoded: the cells of one are kept at a time, beside less than a
                # batch.
                self._classify(waiting, exclusive, heartbeat)
                outcomes = _settle(outcomes, waiting)
                waiting, cells = [], 0
        self._classify(waiting, exclusive, heartbeat)
        outcomes = _settle(outcomes, waiting)
        return [outcome for outcome in outcomes if outcome is not None]

    def _frame(self, item: InferenceItem, heartbeat: Heartbeat) -> _Framed | LeukoError:
        """Return the SHA-256 of the image and its framed cells."""
        try:
            data = item.read()
            with self._timed("decode"), item.stages.time("decode") if item.stages else nullcontext():
                cells = self._frame_cells(item, data, heartbeat)
        except LeukoError as error:
            error.__context__ = None
            return error.with_traceback(
                None
            )  # else the image stays in memory, with the frames of its decoding
        sha256 = hashlib.sha256(data).hexdigest()
        return _Framed(item, sha256, [replace(cell, cam=item.cam) for cell in cells])

    def _frame_cells(self, item: InferenceItem, data: bytes, heartbeat: Heartbeat) -> list[Cell]:
        if not item.all_cells:
            return [self._frame_image(data, heartbeat)]
        assert self._frame_all is not None
        return self._frame_all(data, heartbeat)

    def _classify(
        self, waiting: Sequence[tuple[int, _Framed]], exclusive: bool, heartbeat: Heartbeat
    ) -> None:
        """Run the network on the items' cells, and add the results to the items.

        After a batch, the cells of an item that it has not finished wait for a later run if its `hold` says
        so.
        """
        queue = [(framed, cell) for _, framed in waiting for cell in framed.cells[len(framed.item.done) :]]
        while queue:
            batch, queue = queue[: self._batch], queue[self._batch :]
            began = time.monotonic()
            with self._timed("infer"):
                results = self._classifier.classify([cell for _, cell in batch], exclusive=exclusive)
            _add("infer", [framed.item for framed, _ in batch], partial(_at, began))
            for (framed, _), result in zip(batch, results, strict=True):
                framed.results.append(result)
            heartbeat()
            held = {id(framed): framed for framed, _ in queue if framed.item.all_cells}
            for framed in held.values():
                if (error := framed.item.hold(False)) is not None:
                    framed.results.append(error)
                    queue = [entry for entry in queue if entry[0] is not framed]


def _at(moment: float, _item: InferenceItem) -> float:
    return moment


def _settle(
    outcomes: Sequence[Result | LeukoError | None], waiting: Sequence[tuple[int, _Framed]]
) -> list[Result | LeukoError | None]:
    """Return the outcomes with those of the items that have waited; keep what a postponed one has done."""
    settled = [*outcomes]
    for place, framed in waiting:
        outcome = framed.outcome()
        if isinstance(outcome, Postponed):
            made = [result for result in framed.results if isinstance(result, Prediction)]
            framed.item.done.extend(made)
            outcome = Postponed(outcome.detail, len(made))
        settled[place] = outcome
    return settled


def _add(stage: str, items: Sequence[InferenceItem], began: Callable[[InferenceItem], float]) -> None:
    """Record a stage that ends now, once for each request that has an item in the batch."""
    requests = {item.stages: item for item in items if item.stages is not None}
    for stages, item in requests.items():
        stages.add(stage, began(item), time.monotonic())
