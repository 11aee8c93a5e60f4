"""A bounded pool of threads that turns bytes into framed cells."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

from app.errors import DeadlinePassed, LeukoError, RequestError
from app.vision.decode import ImageLimits, decode
from app.vision.framing import Cell, Preprocessing, frame_cell


@dataclass(frozen=True)
class Framed:
    sha256: str  # of the bytes as they were sent
    cell: Cell


class Decoders:
    """`pending` counts the images that wait here or are being decoded, bulk ones excepted."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        limits: ImageLimits,
        *,
        workers: int = 0,
        timed: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.pending = 0
        self.workers = workers or os.cpu_count() or 1
        self._preprocessing = preprocessing
        self._limits = limits
        self._timed = timed
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        # Bulk work waits here, not in the pool, so that a request waits for one image of it at most.
        self._bulk = asyncio.Semaphore(self.workers)

    async def frame_all(
        self, images: Sequence[bytes], *, cam: bool, deadline: float
    ) -> list[Framed | LeukoError]:
        """What is wrong with an image stands in its place."""
        self.pending += len(images)
        try:
            return await asyncio.gather(*(self._frame_one(data, cam, deadline) for data in images))
        finally:
            self.pending -= len(images)

    async def frame_bulk(self, read: Callable[[], bytes], *, deadline: float) -> Framed | RequestError:
        """What is wrong with the image is returned; what `read` raises, and DeadlinePassed, is raised."""
        async with self._bulk:
            return await self._run(read, False, deadline)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _frame_one(self, data: bytes, cam: bool, deadline: float) -> Framed | LeukoError:
        try:
            return await self._run(lambda: data, cam, deadline)
        except DeadlinePassed as error:
            return error

    async def _run(self, read: Callable[[], bytes], cam: bool, deadline: float) -> Framed | RequestError:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                return await loop.run_in_executor(self._pool, self._frame, read, cam)
        except TimeoutError:
            raise DeadlinePassed("the deadline passed before the image was decoded") from None

    def _frame(self, read: Callable[[], bytes], cam: bool) -> Framed | RequestError:
        data = read()
        try:
            with self._timed():
                image = decode(data, self._limits)
                cell = frame_cell(image, self._preprocessing, cam=cam)
        except RequestError as error:
            return error
        return Framed(hashlib.sha256(data).hexdigest(), cell)
