"""A shadow model: it classifies live images unseen, and only its agreement with the answers is counted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from app.errors import LeukoError
from app.inference.pipeline import Field, InferenceItem, Result
from app.observability.metrics import Telemetry
from app.registry.model_runner import ModelRunner
from app.units import MIB

MOST_IMAGES = 256  # limits on what waits for one shadow
MOST_BYTES = 64 * MIB
PATIENCE_S = 60.0  # deadline of one image
BUSY_POLL_S = 0.02  # between two checks whether the live models are idle


class Shadow:
    """Compare one model with the default's answers.

    share: of the images, chosen by their hash, so that every shadow gets the same ones. busy: returns whether
    a live model has work; the shadow waits meanwhile.
    """

    def __init__(
        self, runner: ModelRunner, share: float, telemetry: Telemetry, busy: Callable[[], bool]
    ) -> None:
        self._runner = runner
        self._share = share
        self._telemetry = telemetry
        self._busy = busy
        self._waiting: deque[tuple[bytes, Result]] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._task = asyncio.create_task(self._work(), name="shadow")

    def offer(self, image: bytes, answer: Result) -> None:
        """Queue an image if it is in the share; count it as skipped if the queue is full."""
        if int(answer.image_sha256[:8], 16) >= self._share * 2**32:
            return
        if len(self._waiting) >= MOST_IMAGES or self._bytes + len(image) > MOST_BYTES:
            self._count("skipped")
            return
        self._waiting.append((image, answer))
        self._bytes += len(image)
        self._arrived.set()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        # The task's traceback refers to this object, and so to the runner: see `ModelRunner.stop`.
        del self._task

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            while self._waiting:
                while self._busy():
                    await asyncio.sleep(BUSY_POLL_S)
                image, answer = self._waiting.popleft()
                self._bytes -= len(image)
                await self._compare(image, answer)
            self._arrived.clear()

    async def _compare(self, image: bytes, answer: Result) -> None:
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        try:
            with self._runner.use() as service:
                shadow_answer = await service.batcher.submit(
                    InferenceItem(image.__bytes__, all_cells=isinstance(answer, Field)),
                    deadline=deadline,
                    bulk=True,
                )
        except LeukoError:  # no client is affected: the live answer has been sent
            self._count("failed")
            return
        labels, shadow_labels = _labels(answer), _labels(shadow_answer)
        self._count("agreed" if labels == shadow_labels else "disagreed")
        if len(labels) != len(shadow_labels):
            return  # their preprocessing differs, so that no cell has its counterpart
        bundle = self._runner.bundle
        for label, shadow_label in zip(labels, shadow_labels, strict=True):
            if label != shadow_label:
                self._telemetry.count_disagreement(bundle.name, bundle.version, label, shadow_label)

    def _count(self, outcome: str) -> None:
        bundle = self._runner.bundle
        self._telemetry.count_shadow(bundle.name, bundle.version, outcome)


def _labels(answer: Result) -> list[str]:
    return [cell.prediction.label for cell in answer.cells]
