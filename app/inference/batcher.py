"""Gather single items into batches for a few worker threads.

There is no timer: a batch is what gathered while all workers were busy.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import DeadlinePassed, EngineError, LeukoError, NotReady, QueueFull, TooLarge
from app.inference.threads import Worker
from app.inference.watchdog import Hung, Run, Watchdog

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

QUIET_S = 1.0  # after this long without interactive items, bulk items fill whole batches


@dataclass(frozen=True)
class BatchStats:
    """One run. seconds: from leaving the queue to the results, retries included."""

    size: int
    waits: tuple[float, ...]  # s in the queue, one per item
    seconds: float


@dataclass(eq=False)
class Waiting(Generic[Item, Result]):
    """An item in the queue. Errors are set as results: asyncio logs exceptions that are never retrieved."""

    item: Item
    outcome: asyncio.Future[Result | LeukoError]
    since: float
    deadline: float | None
    bulk: bool

    def wanted(self, now: float) -> bool:
        return not self.outcome.done() and (self.deadline is None or now < self.deadline)

    def settle(self, outcome: Result | LeukoError) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


# An ordered set: a queue from whose middle an item can be removed.
Lane = dict[Waiting[Item, Result], None]


class Batcher(Generic[Item, Result]):
    """Call `run` on up to `max_batch` items at a time, in `workers` threads of its own.

    `run` takes the items, whether this is the only run (then it may use the whole machine), and a heartbeat;
    it returns one result or LeukoError per item, in order. When it raises, the items of that batch are
    retried one by one, so that only the bad ones fail. `max_queue` limits the items that wait; items in a run
    are no longer in the queue.

    When a run gives no heartbeat for `silence_s`, the batcher stops and all waiting items fail with NotReady.
    `on_suspicion` is called when several runs fail in a row.

    Bulk items wait in a lane of their own, behind interactive items, but every second run has a place for
    them. While interactive items arrive, bulk takes at most `bulk_batch` places in a run and leaves one
    worker free, so that the next interactive item waits for a short run at most.
    """

    def __init__(
        self,
        run: Run[Item, Result],
        *,
        max_batch: int,
        max_queue: int,
        workers: int = 1,
        bulk_batch: int = 1,
        silence_s: float = math.inf,
        on_suspicion: Callable[[], object] = lambda: None,
        on_batch: Callable[[BatchStats], None] | None = None,
    ) -> None:
        self.max_batch = max_batch
        self.capacity = max_queue
        self.workers = workers
        self.bulk_batch = bulk_batch
        self._watchdog = Watchdog(run, silence_s=silence_s, on_suspicion=on_suspicion)
        self._on_batch = on_batch
        self._lane: Lane[Item, Result] = {}
        self._bulk_lane: Lane[Item, Result] = {}
        # One place per call, with one item or a batch. Images are not read while their call waits.
        self._bulk_places = asyncio.Semaphore(2 * max_batch * workers)
        self._last_submit = -math.inf  # of interactive items, on the loop's clock
        self._bulk_ran = False
        self._running = 0
        self._bulk_running = 0  # runs with bulk items only
        self._arrived = asyncio.Event()
        self._draining = False
        self._seconds_per_item = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        return len(self._lane)

    @property
    def idle(self) -> bool:
        return not (self._running or self._lane or self._bulk_lane)

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._serve(), name="batcher")
        self._task.add_done_callback(self._ended)

    async def died(self) -> None:
        """Return once the batcher has stopped; raise nothing."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def abandon(self) -> None:
        """Stop now; all waiting items fail with NotReady."""
        if self._task is not None:
            self._task.cancel()

    async def drain(self) -> None:
        """Admit nothing more, finish the queue, then stop; if cancelled, fail the rest of the queue."""
        self._draining = True
        self._arrived.set()
        if self._task is not None:
            try:
                await asyncio.wait([self._task])
            finally:
                self._task.cancel()

    async def submit(self, item: Item, *, deadline: float | None = None, bulk: bool = False) -> Result:
        """Return the result of one item, or raise its error.

        deadline: on the loop's clock. Bulk items wait for room; interactive ones raise QueueFull.
        """
        [outcome] = await self.submit_many([item], deadline=deadline, bulk=bulk)
        if isinstance(outcome, LeukoError):
            raise outcome
        return outcome

    async def submit_many(
        self, items: Sequence[Item], *, deadline: float | None = None, bulk: bool = False
    ) -> list[Result | LeukoError]:
        """Admit all items or none; return a result or an error for each, in order."""
        if bulk:
            async with self._room_for_bulk(deadline):
                return await self._outcomes(self._bulk_lane, items, deadline)
        self._check_open()
        if len(items) > self.capacity:
            raise TooLarge(f"{len(items)} images in one request; at most {self.capacity} are accepted.")
        self.check_room(len(items))
        self._last_submit = asyncio.get_running_loop().time()
        return await self._outcomes(self._lane, items, deadline) if items else []

    def check_room(self, items: int = 1) -> None:
        """Raise QueueFull, with the time to empty the queue at its current pace as `retry_after`."""
        if self.depth + items > self.capacity:
            seconds = math.ceil(self.depth * self._seconds_per_item / self.workers)
            raise QueueFull("The queue of images is full.", retry_after=max(1, seconds))

    def _check_open(self) -> None:
        if self._draining or not self.alive:
            raise NotReady("No images are accepted now: the service is starting, stopping or has failed.")

    @asynccontextmanager
    async def _room_for_bulk(self, deadline: float | None) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(deadline):
                await self._bulk_places.acquire()
        except TimeoutError:
            raise DeadlinePassed("The deadline passed before there was room in the queue.") from None
        try:
            self._check_open()
            yield
        finally:
            self._bulk_places.release()

    async def _outcomes(
        self, lane: Lane[Item, Result], items: Sequence[Item], deadline: float | None
    ) -> list[Result | LeukoError]:
        loop = asyncio.get_running_loop()
        bulk = lane is self._bulk_lane
        entries = [Waiting(item, loop.create_future(), loop.time(), deadline, bulk) for item in items]
        lane.update(dict.fromkeys(entries))
        self._arrived.set()
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.wait([entry.outcome for entry in entries])
        except TimeoutError:
            for entry in entries:
                entry.settle(DeadlinePassed("The deadline passed before the image was classified."))
        finally:
            for entry in entries:
                entry.outcome.cancel()
                lane.pop(entry, None)
        return [entry.outcome.result() for entry in entries]

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        worker = Worker("worker")
        try:
            while True:
                await self._arrived.wait()
                while batch := self._gather():
                    await self._run_batch(batch, worker)
                if self._draining:
                    return
                self._arrived.clear()
        finally:
            worker.stop()

    def _gather(self) -> list[Waiting[Item, Result]]:
        """Return the next batch for a free worker: its share of the queue, with bulk in every second run."""
        reserved = bool(self._bulk_lane) and not self._bulk_ran  # a place for bulk
        batch = self._take(self._lane, min(self._share(self._lane), self.max_batch - reserved))
        bulk = self._take(self._bulk_lane, self._bulk_share(len(batch))) if reserved or not batch else []
        if batch or bulk:
            self._bulk_ran = bool(bulk)
        return batch + bulk

    def _bulk_share(self, taken: int) -> int:
        if asyncio.get_running_loop().time() - self._last_submit > QUIET_S:
            return min(self._share(self._bulk_lane), self.max_batch - taken)
        if not taken and 0 < self._bulk_running >= self.workers - 1:
            return 0
        return min(self.bulk_batch, self.max_batch - taken)

    def _share(self, lane: Lane[Item, Result]) -> int:
        return min(self.max_batch, math.ceil(len(lane) / (self.workers - self._running)))

    def _take(self, lane: Lane[Item, Result], room: int) -> list[Waiting[Item, Result]]:
        now = asyncio.get_running_loop().time()
        taken: list[Waiting[Item, Result]] = []
        while lane and len(taken) < room:
            entry = next(iter(lane))
            del lane[entry]
            if entry.wanted(now):
                taken.append(entry)
        return taken

    async def _run_batch(self, batch: list[Waiting[Item, Result]], worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        exclusive = not self._running and len(batch) == 1 and not self._lane and not self._bulk_lane
        bulk = all(entry.bulk for entry in batch)
        self._running += 1
        self._bulk_running += bulk
        try:
            await self._attempt(batch, exclusive, worker)
        except BaseException:
            for entry in batch:
                entry.settle(NotReady("The engine has stopped."))
            raise
        finally:
            self._running -= 1
            self._bulk_running -= bulk
        self._observe(batch, began, loop.time())

    async def _attempt(self, batch: list[Waiting[Item, Result]], exclusive: bool, worker: Worker) -> None:
        """Run a batch; if it fails, retry its items one by one, so that only the bad ones fail."""
        try:
            outcomes = await self._watchdog.run(worker, [entry.item for entry in batch], exclusive)
        except EngineError as error:
            logger.error("The engine failed on a batch of %d.", len(batch), exc_info=error)
            if len(batch) == 1:
                batch[0].settle(error)
                return
            for entry in batch:
                if entry.wanted(asyncio.get_running_loop().time()):
                    await self._attempt([entry], False, worker)
        else:
            for entry, outcome in zip(batch, outcomes, strict=True):
                entry.settle(outcome)

    def _observe(self, batch: list[Waiting[Item, Result]], began: float, ended: float) -> None:
        stats = BatchStats(len(batch), tuple(began - entry.since for entry in batch), ended - began)
        weight = 0.2 if self._seconds_per_item else 1.0
        self._seconds_per_item += weight * (stats.seconds / stats.size - self._seconds_per_item)
        if self._on_batch is not None:
            self._on_batch(stats)

    def _ended(self, task: asyncio.Task[None]) -> None:
        for entry in [*self._lane, *self._bulk_lane]:
            entry.settle(NotReady("The service has stopped."))
        if not task.cancelled() and (error := task.exception()):
            hung = error.split(Hung)[0] if isinstance(error, BaseExceptionGroup) else None
            if hung is not None:
                logger.critical("The batcher stops. %s", hung.exceptions[0])
            else:
                logger.critical("The batcher died.", exc_info=error)
