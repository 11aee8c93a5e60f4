"""Daemon threads: the process can exit while one of them hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

Result = TypeVar("Result")

Heartbeat = Callable[[], object]  # long work calls it regularly, to show that it makes progress
Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class Worker:
    """One thread that runs one call after another, or several that share the calls."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        for _ in range(threads):
            Thread(target=self._serve, name=name, daemon=True).start()

    def run(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        """Queue a call; return a future of the running loop with its result or exception.

        A call whose future is cancelled before it begins is never made.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._queue.put((call, future, loop))
        return future

    def stop(self) -> None:
        """End one thread after the calls that are queued."""
        self._queue.put(None)

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            call, future, loop = job
            if not future.cancelled():
                _settle_with(call, future, loop)
            del job, call, future  # else the result stays in memory until the next call


class Pool:
    """Threads for one kind of work, so that it cannot hold up other kinds; they start when first needed."""

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._threads = threads
        self._worker: Worker | None = None

    def run(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        """Do as `Worker.run`. Call on the event loop."""
        if self._worker is None:
            self._worker = Worker(self._name, self._threads)
        return self._worker.run(call)


# asyncio.to_thread would put all work into one queue, and wait for all of it at shutdown.
SHORT = Pool("short", 4)  # milliseconds, which predictions wait for: hashes, small bodies, responses
# Evaluations: archives, labels, scores. They are few, since each busy thread delays the event loop by up to
# 5 ms, the interpreter's switch interval.
LONG = Pool("long", 2)


def _settle_with(
    call: Callable[[], Any], future: asyncio.Future[Any], loop: asyncio.AbstractEventLoop
) -> None:
    settle: Callable[[Any], object] = future.set_exception
    value: Any
    try:
        value, settle = call(), future.set_result
    except Exception as error:
        value = error
    except BaseException as error:  # SystemExit would end the thread and leave its caller waiting
        value = RuntimeError(f"{type(error).__name__} in a thread")
    with suppress(RuntimeError):  # the loop is closed, so nothing awaits the future
        loop.call_soon_threadsafe(_settle, future, settle, value)


def _settle(future: asyncio.Future[Any], settle: Callable[[Any], object], value: Any) -> None:
    if not future.done():
        settle(value)


def in_thread(call: Callable[[], Result]) -> asyncio.Future[Result]:
    """Run a call as asyncio.to_thread does, but on a daemon thread of its own."""
    worker = Worker("loading")
    future = worker.run(call)
    worker.stop()
    return future
