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
    """One thread that runs one call after another."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        Thread(target=self._serve, name=name, daemon=True).start()

    def run(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        """Queue a call; return a future of the running loop with its result or exception."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._queue.put((call, future, loop))
        return future

    def stop(self) -> None:
        """End the thread after the calls that are queued."""
        self._queue.put(None)

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            call, future, loop = job
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
            del job, call, future, settle, value  # else the result stays in memory until the next call


def _settle(future: asyncio.Future[Any], settle: Callable[[Any], object], value: Any) -> None:
    if not future.done():
        settle(value)


def in_thread(call: Callable[[], Result]) -> asyncio.Future[Result]:
    """Run a call as asyncio.to_thread does, but on a daemon thread of its own."""
    worker = Worker("loading")
    future = worker.run(call)
    worker.stop()
    return future
