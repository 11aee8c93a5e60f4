"""The loaded model with everything around it: bytes in, answers out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.batching import Batcher
from app.decoders import Decoders, Framed
from app.errors import EngineError, LeukoError, QueueFull, UndecodableImage
from app.settings import Settings
from app.telemetry import Telemetry
from app.vision.archive import ArchiveLimits
from app.vision.classifier import Classifier, Prediction
from app.vision.decode import ImageLimits
from app.vision.framing import Cell, Frame

MIB = 2**20


@dataclass(frozen=True)
class Answer:
    image_sha256: str
    frame: Frame
    prediction: Prediction


@dataclass(frozen=True)
class Service:
    settings: Settings
    telemetry: Telemetry
    classifier: Classifier
    batcher: Batcher[Cell, Prediction]
    decoders: Decoders

    @classmethod
    async def start(cls, settings: Settings, telemetry: Telemetry, classifier: Classifier) -> Service:
        batcher: Batcher[Cell, Prediction] = Batcher(
            classifier.classify,
            max_batch=batch_size(settings, classifier),
            max_queue=settings.max_queue,
            on_batch=telemetry.observe_batch,
        )
        decoders = Decoders(
            classifier.bundle.preprocessing,
            image_limits(settings),
            workers=settings.decode_workers,
            timed=lambda: telemetry.stage("decode"),
        )
        await batcher.start()
        return cls(settings, telemetry, classifier, batcher, decoders)

    async def stop(self) -> None:
        """Finishes what was admitted, for drain_s at most."""
        try:
            async with asyncio.timeout(self.settings.drain_s):
                await self.batcher.drain()
        finally:
            self.decoders.close()

    async def classify(
        self, images: Sequence[bytes], *, cam: bool = False, deadline: float
    ) -> list[Answer | LeukoError]:
        """An answer or an error for each image, in order; QueueFull, NotReady are raised for all.

        deadline: on the loop's clock.
        """
        self._check_room(len(images))
        framed = await self.decoders.frame_all(images, cam=cam, deadline=deadline)
        cells = [one.cell for one in framed if isinstance(one, Framed)]
        results = iter(await self.batcher.submit_many(cells, deadline=deadline))
        answers = [_answer(one, next(results)) if isinstance(one, Framed) else one for one in framed]
        for answer in answers:
            self._observe(answer)
        return answers

    async def classify_bulk(self, read: Callable[[], bytes], *, deadline: float) -> Prediction | LeukoError:
        """One image of many, behind those of `classify`; an error that is its own is returned.

        Raised for all: NotReady, DeadlinePassed, and what `read` says of the archive.
        """
        try:
            framed = await self.decoders.frame_bulk(read, deadline=deadline)
            if not isinstance(framed, Framed):
                self.telemetry.count_image(framed.code)
                return framed
            found = await self.batcher.submit(framed.cell, deadline=deadline, bulk=True)
        except (UndecodableImage, EngineError) as error:
            self.telemetry.count_image(error.code)
            return error
        self.telemetry.count_image()
        return found

    def _check_room(self, images: int) -> None:
        # Before decoding, so that an overloaded service spends nothing on what it will refuse.
        if self.decoders.pending + self.batcher.depth + images > self.settings.max_queue:
            raise QueueFull("more images are waiting than may wait")

    def _observe(self, answer: Answer | LeukoError) -> None:
        if isinstance(answer, LeukoError):
            self.telemetry.count_image(answer.code)
        else:
            self.telemetry.count_image()
            self.telemetry.observe_prediction(answer.prediction.label, answer.prediction.confidence)


def batch_size(settings: Settings, classifier: Classifier) -> int:
    return settings.max_batch or classifier.engine.batch


def image_limits(settings: Settings) -> ImageLimits:
    return ImageLimits(max_bytes=settings.max_image_mib * MIB, max_pixels=settings.max_pixels)


def archive_limits(settings: Settings) -> ArchiveLimits:
    return ArchiveLimits(
        max_entries=settings.max_archive_entries, max_entry_bytes=settings.max_image_mib * MIB
    )


def _answer(framed: Framed, result: Prediction | LeukoError) -> Answer | LeukoError:
    if isinstance(result, LeukoError):
        return result
    return Answer(framed.sha256, framed.cell.frame, result)
