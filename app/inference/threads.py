"""Daemon threads: the process can exit while one of them hangs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Any, TypeVar

from app.errors import QueueFull
from app.inference.fair_queue import Caller, FairQueue
from app.observability.request_context import Holding, RequestContext

Result = TypeVar("Result")

Heartbeat = Callable[[], object]  # long work calls it regularly, to show that it makes progress


@dataclass(eq=False)
class _Job:
    """A call, and the future of a loop that gets its outcome. holding: kept until the call has ended."""

    call: Callable[[], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    caller: Caller
    holding: Holding | None = None

    def do(self) -> None:
        """Make the call, unless its future was cancelled. Call in a thread."""
        # No variable keeps an error: its traceback leads back to this frame, and such a cycle would keep what
        # the call has in memory until the garbage collector comes by.
        with suppress(RuntimeError):  # the loop is closed, so nothing awaits the future
            self.loop.call_soon_threadsafe(self.end, *self._outcome())

    def _outcome(self) -> tuple[Any, Exception | None]:
        if self.future.cancelled():
            return None, None
        try:
            return self.call(), None
        except Exception as error:
            return None, error
        except BaseException as error:  # SystemExit would end the thread and leave its caller waiting
            return None, RuntimeError(f"{type(error).__name__} in a thread")

    def end(self, result: Any = None, error: Exception | None = None) -> None:
        """Give back what is held, then settle the future. Call on the loop."""
        if self.holding is not None:
            self.holding.close()
        if not self.future.done():
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)


class Worker:
    """One thread that runs one call after another."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        Thread(target=self._serve, name=name, daemon=True).start()

    def run(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        """Queue a call; return a future of the running loop with its result or exception.

        A call whose future is cancelled before it begins is never made.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._queue.put(_Job(call, future, loop, Caller()))
        return future

    def stop(self) -> None:
        """End the thread after the calls that are queued."""
        self._queue.put(None)

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            job.do()
            del job  # else the result stays in memory until the next call


class Pool:
    """Threads for one kind of work of requests, so that it cannot hold up other kinds.

    Callers take turns, and one never has the last thread, unless there is only one: what it has running
    cannot be interrupted, and would hold up all others. most_waiting: calls that may wait of each caller,
    None for any number. The threads start when first needed.
    """

    def __init__(self, name: str, threads: int, most_waiting: int | None = None) -> None:
        self._name = name
        self._threads = threads
        self._most_waiting = most_waiting
        self._started = False
        self._changed = Condition()  # guards what follows
        self._waiting: FairQueue[_Job] = FairQueue()
        self._running: Counter[str] = Counter()  # calls of each caller

    def run(self, call: Callable[[], Result], context: RequestContext) -> asyncio.Future[Result]:
        """Queue a call of a request; return a future of the running loop with its result or exception.

        A call whose future is cancelled before it begins is dropped at once, with what it keeps in memory.
        What the request holds stays held until the call was dropped or has ended, also if its client leaves.
        Raise QueueFull. Call on the event loop.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        job = _Job(call, future, loop, Caller.of(context), context.holding)
        with self._changed:
            if self._most_waiting is not None and self._waiting.depth(job.caller) >= self._most_waiting:
                raise QueueFull(f"Too many {self._name} of this caller are waiting.")
            if job.holding is not None:
                job.holding.hold()
            self._waiting.add(job.caller, [job])
            self._changed.notify()
        future.add_done_callback(lambda _: self._drop(job) if future.cancelled() else None)
        self._start()
        return future

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for _ in range(self._threads):
                Thread(target=self._serve, name=self._name, daemon=True).start()

    def _drop(self, job: _Job) -> None:
        with self._changed:
            waited = self._waiting.discard(job.caller, job, time.monotonic())
        if waited:
            job.end()

    def _serve(self) -> None:
        while True:
            job = self._take()
            job.do()
            self._finish(job.caller.id)
            del job  # else the result stays in memory until the next call

    def _take(self) -> _Job:
        most = max(1, self._threads - 1)
        with self._changed:
            while True:
                full = [id for id, count in self._running.items() if count >= most]
                job = self._waiting.take(time.monotonic(), without=full)
                if job is not None:
                    self._running[job.caller.id] += 1
                    return job
                self._changed.wait()

    def _finish(self, id: str) -> None:
        with self._changed:
            self._running[id] -= 1
            if not self._running[id]:
                del self._running[id]


# asyncio.to_thread would put all work into one queue, and wait for all of it at shutdown.
SHORT = Pool("short", 4)  # milliseconds, which predictions wait for: hashes, small bodies, responses
# Evaluations: archives, labels, scores. They are few, since each busy thread delays the event loop by up to
# 5 ms, the interpreter's switch interval.
LONG = Pool("long", 2)


def in_thread(call: Callable[[], Result]) -> asyncio.Future[Result]:
    """Run a call as asyncio.to_thread does, but on a daemon thread of its own."""
    worker = Worker("loading")
    future = worker.run(call)
    worker.stop()
    return future
