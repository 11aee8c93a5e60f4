"""A loaded model with its queue, workers and decoders: bytes in, answers out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from app.archives.labelled_archive import ArchiveLimits
from app.engine.classifier import Classifier, Prediction
from app.errors import DeadlinePassed, EngineError, LeukoError, RequestError, UndecodableImage
from app.imaging.limits import ImageLimits
from app.inference.batcher import ANYONE, Batcher, Postponed
from app.inference.decode_pool import DecodePool
from app.inference.decode_worker import DecoderConfig
from app.inference.fair_queue import Caller
from app.inference.pipeline import Hold, InferenceItem, Pipeline, Result, cost, untimed
from app.inference.runtime import Runtime
from app.inference.threads import in_thread
from app.observability.metrics import Telemetry
from app.observability.stages import Stages
from app.settings import Settings
from app.units import MIB

logger = logging.getLogger(__name__)

OnAnswer = Callable[[bytes, Result], object]


def ignore_answer(_image: bytes, _answer: Result) -> None:
    """Do nothing with an answer."""


@dataclass(frozen=True)
class Service:
    """One running model. on_answer: called with each image and answer of `classify`."""

    settings: Settings
    telemetry: Telemetry
    classifier: Classifier
    batcher: Batcher[InferenceItem, Result]
    decoders: DecodePool
    on_answer: OnAnswer

    @classmethod
    async def start(
        cls,
        runtime: Runtime,
        classifier: Classifier,
        on_suspicion: Callable[[], object],
        on_answer: OnAnswer,
        *,
        counted: bool = True,
    ) -> Service:
        """Start the workers and decoder processes of a loaded classifier. Raise StartupError.

        on_suspicion: called when several runs of the engine fail in a row.
        counted: whether its runs are in the metrics.
        """
        settings, telemetry = runtime.settings, runtime.telemetry
        workers = worker_count(settings, classifier)
        config = DecoderConfig(
            image_limits(settings),
            classifier.bundle.preprocessing,
            settings.engine_timeout_s,
            max_cells=settings.max_cells,
            style=classifier.bundle.familiar is not None,
        )
        decoders = DecodePool(workers, config, telemetry.count_decoder_loss)
        pipeline = Pipeline(
            classifier,
            decoders.frame,
            telemetry.stage if counted else untimed,
            frame_all=decoders.frame_all,
            batch=batch_size(settings, classifier),
        )
        batcher: Batcher[InferenceItem, Result] = Batcher(
            pipeline.run,
            workers=workers,
            max_batch=batch_size(settings, classifier),
            max_queue=settings.max_queue,
            silence_s=settings.engine_timeout_s,
            on_suspicion=on_suspicion,
            on_batch=telemetry.observe_batch if counted else None,
            on_share_refusal=telemetry.count_share_refusal,
            cost=cost,
        )
        try:
            await in_thread(decoders.open)
            await batcher.start()
        except BaseException:  # also when cancelled: leave no decoder process behind
            decoders.close()
            raise
        return cls(settings, telemetry, classifier, batcher, decoders, on_answer)

    @contextmanager
    def stage(self, name: str, stages: Stages) -> Iterator[None]:
        """Time a stage of a request."""
        with self.telemetry.stage(name), stages.time(name):
            yield

    async def stop(self) -> None:
        """Finish admitted requests, for drain_s at most; then abandon an engine that still runs."""
        try:
            async with asyncio.timeout(self.settings.drain_s):
                await self.batcher.drain()
        except TimeoutError:
            bundle = self.classifier.bundle
            logger.error(
                "%s %s: drain timed out after %g s; abandoning the engine",
                bundle.name,
                bundle.version,
                self.settings.drain_s,
            )
        finally:
            self.decoders.close()

    async def classify(
        self,
        images: Sequence[bytes],
        *,
        caller: Caller = ANYONE,
        cam: bool = False,
        all_cells: bool = False,
        deadline: float,
        stages: Stages | None = None,
    ) -> list[Result | LeukoError]:
        """Return an answer or an error for each image, in order. deadline: on the loop's clock.

        all_cells: classify all leukocytes of each image; the answers are then Fields.
        Raise TooLarge, QueueFull or NotReady for all images together.
        """
        with self._interest() as hold:
            items = [
                InferenceItem(image.__bytes__, cam, hold, stages, all_cells=all_cells) for image in images
            ]
            answers = await self.batcher.submit_many(items, caller=caller, deadline=deadline)
        for image, answer in zip(images, answers, strict=True):
            if isinstance(answer, LeukoError):
                self.telemetry.count_image(answer.code)
            else:
                self.telemetry.count_image()
                self.on_answer(image, answer)
        return answers

    async def classify_bulk(
        self,
        reads: Sequence[Callable[[], bytes]],
        *,
        caller: Caller = ANYONE,
        deadline: float,
        stages: Stages | None = None,
    ) -> list[Prediction | LeukoError]:
        """Classify images of a large set at lower priority than `classify`; read each when its batch runs.

        Return a prediction or an error for each image, in order. Raise NotReady, DeadlinePassed and `read`'s
        errors of the archive for all images together.
        """
        images = [_ArchiveImage(read) for read in reads]
        with self._interest() as hold:
            items = [InferenceItem(image.read, hold=hold, stages=stages) for image in images]
            outcomes = await self.batcher.submit_many(items, caller=caller, deadline=deadline, bulk=True)
        return [self._settle(image, outcome) for image, outcome in zip(images, outcomes, strict=True)]

    @contextmanager
    def _interest(self) -> Iterator[Hold]:
        """Yield the `hold` of a request's images.

        After the block nobody waits for them any more: the deadline has passed or the client has left.
        """
        over = False

        def hold(first: bool) -> LeukoError | None:
            if over:
                return DeadlinePassed("Nobody waits for this image any more.")
            if not first and self.batcher.must_yield:  # runs that postponed all would never end
                return Postponed("Another caller waits.")
            return None

        try:
            yield hold
        finally:
            over = True

    def _settle(self, image: _ArchiveImage, outcome: Result | LeukoError) -> Prediction | LeukoError:
        if not isinstance(outcome, LeukoError):
            self.telemetry.count_image()
            [cell] = outcome.cells
            return cell.prediction
        if outcome is image.archive_error or not isinstance(outcome, RequestError | EngineError):
            raise outcome
        self.telemetry.count_image(outcome.code)
        return outcome


class _ArchiveImage:
    """Read one image of an archive, and keep the error if the archive, not the image, caused it."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self.archive_error: LeukoError | None = None
        self._read = read

    def read(self) -> bytes:
        try:
            return self._read()
        except UndecodableImage:
            raise
        except LeukoError as error:
            self.archive_error = error
            raise


def batch_size(settings: Settings, classifier: Classifier) -> int:
    return settings.max_batch or classifier.engine.batch


def worker_count(settings: Settings, classifier: Classifier) -> int:
    return settings.decode_workers or classifier.engine.workers


def image_limits(settings: Settings) -> ImageLimits:
    return ImageLimits(max_bytes=settings.max_image_mib * MIB, max_pixels=settings.max_pixels)


def archive_limits(settings: Settings) -> ArchiveLimits:
    return ArchiveLimits(
        max_entries=settings.max_archive_entries, max_entry_bytes=settings.max_image_mib * MIB
    )
