"""Gather single items into batches for a few worker threads.

There is no timer: a batch is what gathered while all workers were busy.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import DeadlinePassed, EngineError, LeukoError, NotReady, QueueFull, TooLarge
from app.inference.fair_queue import Caller, FairQueue
from app.inference.threads import Worker
from app.inference.watchdog import Hung, Run, Watchdog

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

QUIET_S = 1.0  # after this long without interactive items, bulk items fill whole batches
ANYONE = Caller()


class Postponed(LeukoError):
    """An item was not finished, so that a worker is free for another caller: it goes back into the queue.

    work: what was done of it, as `cost` counts results.
    """

    def __init__(self, detail: str, work: int = 0) -> None:
        super().__init__(detail)
        self.work = work


def one(_result: object) -> int:
    """Return what a result cost if all cost the same."""
    return 1


@dataclass(frozen=True)
class BatchStats:
    """One run. seconds: from leaving the queue to the results, retries included."""

    size: int
    waits: tuple[float, ...]  # s in the queue, one per item
    first_waits: tuple[float, ...]  # of interactive items whose caller had no other in the queue
    seconds: float


@dataclass(eq=False)
class Waiting(Generic[Item, Result]):
    """An item in the queue. Errors are set as results: asyncio logs exceptions that are never retrieved."""

    item: Item
    caller: Caller
    outcome: asyncio.Future[Result | LeukoError]
    since: float
    deadline: float | None
    first: bool  # interactive, and its caller had no other item in the queue
    bulk: bool
    yields: bool  # its run leaves one worker free for others

    def wanted(self, now: float) -> bool:
        return not self.outcome.done() and (self.deadline is None or now < self.deadline)

    def settle(self, outcome: Result | LeukoError) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


Lane = FairQueue[Waiting[Item, Result]]


class Batcher(Generic[Item, Result]):
    """Call `run` on up to `max_batch` items at a time, in `workers` threads of its own.

    `run` takes the items, whether this is the only run (then it may use the whole machine), and a heartbeat;
    it returns one result or LeukoError per item, in order. When it raises, the items of that batch are
    retried one by one, so that only the bad ones fail. `max_queue` limits the items that wait; items in a run
    are no longer in the queue.

    Callers share the queue (`FairQueue`). A caller that is within its share finds room in a queue that others
    filled. A caller alone fills whole batches. While another caller is active, a caller with several items
    takes at most `short_batch` places in a run and leaves one worker free, so that the next item of the other
    waits for a short run at most.

    A caller that arrives while others hold all workers must not wait for the rest of their batches either:
    `run` should ask `must_yield` before each item but its first, and between parts of a long item, and return
    Postponed for what it has not finished.

    A caller's turns are counted by what its results cost: `cost` returns how many items of the usual work a
    result stands for, at least 1.

    When a run gives no heartbeat for `silence_s`, the batcher stops and all waiting items fail with NotReady.
    `on_suspicion` is called when several runs fail in a row.

    Bulk items wait in a lane of their own, behind interactive items, but every second run has a place for
    them. While interactive items arrive, bulk also takes at most `short_batch` places and leaves one worker
    free.
    """

    def __init__(
        self,
        run: Run[Item, Result],
        *,
        max_batch: int,
        max_queue: int,
        workers: int = 1,
        short_batch: int = 1,
        silence_s: float = math.inf,
        on_suspicion: Callable[[], object] = lambda: None,
        on_batch: Callable[[BatchStats], None] | None = None,
        on_share_refusal: Callable[[], object] = lambda: None,
        cost: Callable[[Result], int] = one,
    ) -> None:
        self.max_batch = max_batch
        self.capacity = max_queue
        self.workers = workers
        self.short_batch = short_batch
        self._watchdog = Watchdog(run, silence_s=silence_s, on_suspicion=on_suspicion)
        self._on_batch = on_batch
        self._on_share_refusal = on_share_refusal
        self._cost = cost
        self._lane: Lane[Item, Result] = FairQueue()
        self._bulk_lane: Lane[Item, Result] = FairQueue()
        self._last_submit = -math.inf  # of interactive items, on the loop's clock
        self._bulk_ran = False
        self._running = 0
        self._served: Counter[str] = Counter()  # items of each caller in the runs under way
        self._kept_out = False  # a caller has interactive items in the queue, and none in any run
        self._yielding = 0  # runs of which all items yield
        self._arrived = asyncio.Event()
        self._draining = False
        self._seconds_per_item = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        return len(self._lane)

    @property
    def callers(self) -> int:
        """Return the number of callers with interactive items in the queue."""
        return self._lane.callers

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

    async def submit(
        self, item: Item, *, caller: Caller = ANYONE, deadline: float | None = None, bulk: bool = False
    ) -> Result:
        """Return the result of one item, or raise its error. deadline: on the loop's clock."""
        [outcome] = await self.submit_many([item], caller=caller, deadline=deadline, bulk=bulk)
        if isinstance(outcome, LeukoError):
            raise outcome
        return outcome

    async def submit_many(
        self,
        items: Sequence[Item],
        *,
        caller: Caller = ANYONE,
        deadline: float | None = None,
        bulk: bool = False,
    ) -> list[Result | LeukoError]:
        """Admit all items or none; return a result or an error for each, in order.

        Raise QueueFull if there is no room for interactive items. The bulk lane has no limit: whoever submits
        bulk items waits for them before it submits more.
        """
        self._check_open()
        if not bulk:
            if len(items) > self.capacity:
                raise TooLarge(f"{len(items)} images in one request; at most {self.capacity} are accepted.")
            self.check_room(caller, len(items))
            self._last_submit = asyncio.get_running_loop().time()
        return await self._outcomes(caller, items, deadline, bulk) if items else []

    @property
    def must_yield(self) -> bool:
        """Return whether a caller waits while all workers run for others only; for any thread."""
        return self._running >= self.workers and self._kept_out

    def has_room(self, caller: Caller, items: int = 1) -> bool:
        """Return whether the queue has room, or the caller is within its share of it.

        A request that is larger than its caller's share is admitted beyond the capacity too if that caller
        has nothing in the queue, or it might never be.
        """
        if self.depth + items <= self.capacity:
            return True
        held = self._lane.depth(caller)
        if held + items <= max(1, self.capacity * self._lane.share(caller)):
            return True
        return not held and self.depth <= self.capacity

    def check_room(self, caller: Caller = ANYONE, items: int = 1) -> None:
        """Raise QueueFull; `retry_after` is the time for the caller's own items at its current pace."""
        if self.has_room(caller, items):
            return
        share, held = self._lane.share(caller), self._lane.depth(caller)
        if share < 1:
            self._on_share_refusal()
        ahead = held / share if held else self.depth
        seconds = math.ceil(ahead * self._seconds_per_item / self.workers)
        raise QueueFull("The queue of images is full.", retry_after=max(1, seconds))

    def _check_open(self) -> None:
        if self._draining or not self.alive:
            raise NotReady("No images are accepted now: the service is starting, stopping or has failed.")

    async def _outcomes(
        self, caller: Caller, items: Sequence[Item], deadline: float | None, bulk: bool
    ) -> list[Result | LeukoError]:
        loop = asyncio.get_running_loop()
        lane = self._bulk_lane if bulk else self._lane
        firsts = 0 if bulk or lane.depth(caller) else 1
        entries = [
            Waiting(item, caller, loop.create_future(), loop.time(), deadline, index < firsts, bulk, bulk)
            for index, item in enumerate(items)
        ]
        lane.add(caller, entries)
        self._note_waiting()
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.wait([entry.outcome for entry in entries])
        except TimeoutError:
            for entry in entries:
                entry.settle(DeadlinePassed("The deadline passed before the image was classified."))
        finally:
            for entry in entries:
                entry.outcome.cancel()
                lane.discard(caller, entry, loop.time())
            self._note_waiting()
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
        batch = self._take_interactive(self.max_batch - reserved)
        bulk = self._take(self._bulk_lane, self._bulk_share(len(batch))) if reserved or not batch else []
        if batch or bulk:
            self._bulk_ran = bool(bulk)
        return batch + bulk

    def _take_interactive(self, room: int) -> list[Waiting[Item, Result]]:
        lane = self._lane
        if not lane.contended(asyncio.get_running_loop().time()):
            return self._take(lane, min(self._share(len(lane)), room))
        if not lane.first_is_crowded or not self._may_yield:
            return self._take(lane, min(self._share(lane.singles), room), crowded=False)
        batch = self._take(lane, min(self.short_batch, room), crowded=True)
        for entry in batch:
            entry.yields = True
        return batch

    def _bulk_share(self, taken: int) -> int:
        if asyncio.get_running_loop().time() - self._last_submit > QUIET_S:
            return min(self._share(len(self._bulk_lane)), self.max_batch - taken)
        if not taken and not self._may_yield:
            return 0
        return min(self.short_batch, self.max_batch - taken)

    @property
    def _may_yield(self) -> bool:
        """Return whether a run that yields would leave one worker free."""
        return self._yielding < max(1, self.workers - 1)

    def _share(self, items: int) -> int:
        return min(self.max_batch, math.ceil(items / (self.workers - self._running)))

    def _take(
        self, lane: Lane[Item, Result], room: int, *, crowded: bool | None = None
    ) -> list[Waiting[Item, Result]]:
        """Take up to `room` items that are still wanted; crowded: as for `FairQueue.take`."""
        now = asyncio.get_running_loop().time()
        taken: list[Waiting[Item, Result]] = []
        while len(taken) < room and (entry := lane.take(now, crowded=crowded)) is not None:
            if entry.wanted(now):
                taken.append(entry)
        return taken

    async def _run_batch(self, batch: list[Waiting[Item, Result]], worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        exclusive = not self._running and len(batch) == 1 and not self._lane and not self._bulk_lane
        yields = all(entry.yields for entry in batch)
        callers = Counter(entry.caller.id for entry in batch)
        self._running += 1
        self._yielding += yields
        self._served += callers
        self._note_waiting()
        try:
            await self._attempt(batch, exclusive, worker)
        except BaseException:
            for entry in batch:
                entry.settle(NotReady("The engine has stopped."))
            raise
        finally:
            self._running -= 1
            self._yielding -= yields
            self._served -= callers
            self._note_waiting()
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
            postponed = []
            for entry, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Postponed):
                    postponed.append(entry)
                else:
                    entry.settle(outcome)
            self._put_back(postponed)
            self._charge(batch, outcomes)

    def _charge(
        self, batch: Sequence[Waiting[Item, Result]], outcomes: Sequence[Result | LeukoError]
    ) -> None:
        """Count the turns of results beyond the one that was counted when their item was taken."""
        for entry, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, LeukoError):
                turns = outcome.work if isinstance(outcome, Postponed) else 0
            else:
                turns = self._cost(outcome) - 1
            if turns > 0:
                (self._bulk_lane if entry.bulk else self._lane).charge(entry.caller, turns)

    def _put_back(self, entries: Sequence[Waiting[Item, Result]]) -> None:
        """Return items to the front of their callers' queues, except those that nobody waits for any more."""
        groups: defaultdict[tuple[bool, Caller], list[Waiting[Item, Result]]] = defaultdict(list)
        for entry in entries:
            if not entry.outcome.done():
                entry.yields = entry.bulk
                groups[entry.bulk, entry.caller].append(entry)
        for (bulk, caller), group in groups.items():
            (self._bulk_lane if bulk else self._lane).put_back(caller, group)

    def _note_waiting(self) -> None:
        self._kept_out = any(not self._served[id] for id in self._lane.ids)
        if self._lane or self._bulk_lane:
            self._arrived.set()

    def _observe(self, batch: list[Waiting[Item, Result]], began: float, ended: float) -> None:
        waits = tuple(began - entry.since for entry in batch)
        first_waits = tuple(began - entry.since for entry in batch if entry.first)
        stats = BatchStats(len(batch), waits, first_waits, ended - began)
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
