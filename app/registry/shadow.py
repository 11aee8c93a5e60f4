"""A second bundle on the live traffic: what it says is counted, and nobody is answered by it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from app.errors import LeukoError
from app.inference.pipeline import Answer, InferenceItem
from app.observability.metrics import Telemetry
from app.registry.model_runner import ModelRunner
from app.units import MIB

MOST_IMAGES = 256  # waiting, and of bytes:
MOST_BYTES = 64 * MIB
PATIENCE_S = 60.0
BREATH_S = 0.02


class Shadow:
    """share: of images that it is tried on, the same ones for every shadow; busy: there is other work."""

    def __init__(
        self, runner: ModelRunner, share: float, telemetry: Telemetry, busy: Callable[[], bool]
    ) -> None:
        self._runner = runner
        self._share = share
        self._telemetry = telemetry
        self._busy = busy
        self._waiting: deque[tuple[bytes, Answer]] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._working = asyncio.create_task(self._work(), name="shadow")

    def offer(self, image: bytes, answer: Answer) -> None:
        """It waits until there is time for it, and is counted as skipped where too much does."""
        if int(answer.image_sha256[:8], 16) >= self._share * 2**32:
            return
        if len(self._waiting) >= MOST_IMAGES or self._bytes + len(image) > MOST_BYTES:
            self._count("skipped")
            return
        self._waiting.append((image, answer))
        self._bytes += len(image)
        self._arrived.set()

    async def stop(self) -> None:
        self._working.cancel()
        await asyncio.wait([self._working])
        del self._working  # its traceback holds this, and so the runner, as with Runner.stop

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            while self._waiting:
                while self._busy():
                    await asyncio.sleep(BREATH_S)
                image, answer = self._waiting.popleft()
                self._bytes -= len(image)
                await self._compare(image, answer)
            self._arrived.clear()

    async def _compare(self, image: bytes, answer: Answer) -> None:
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        try:
            with self._runner.use() as service:
                found = await service.batcher.submit(
                    InferenceItem(image.__bytes__), deadline=deadline, bulk=True
                )
        except LeukoError:  # of the shadow alone: the live answer is out
            self._count("failed")
            return
        label, other = answer.prediction.label, found.prediction.label
        self._count("agreed" if label == other else "disagreed")
        if label != other:
            bundle = self._runner.bundle
            self._telemetry.count_disagreement(bundle.name, bundle.version, label, other)

    def _count(self, outcome: str) -> None:
        bundle = self._runner.bundle
        self._telemetry.count_shadow(bundle.name, bundle.version, outcome)
