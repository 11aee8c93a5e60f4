"""Threads that the end of the process does not wait for, since what runs on them may hang."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

Heartbeat = Callable[[], object]  # what long work calls now and then, to say that it goes on


class Worker:
    """One thread that does one piece of work after another."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[_Work[Any] | None] = SimpleQueue()
        Thread(target=self._serve, name=name, daemon=True).start()

    def run(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        """For the running loop; whatever `call` raises, SystemExit too, is the future's."""
        work = _Work(call, asyncio.get_running_loop())
        self._queue.put(work)
        return work.outcome

    def stop(self) -> None:
        """Once what was asked for is done."""
        self._queue.put(None)

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            work.do()
            del work  # or its result would live until the next


class _Work(Generic[Result]):
    def __init__(self, call: Callable[[], Result], loop: asyncio.AbstractEventLoop) -> None:
        self.outcome: asyncio.Future[Result] = loop.create_future()
        self._call = call
        self._loop = loop

    def do(self) -> None:
        try:
            result = self._call()
        except Exception as error:
            self._tell(self.outcome.set_exception, error)
        except BaseException as error:  # a thread that only leaves would leave its caller waiting
            self._tell(self.outcome.set_exception, RuntimeError(f"{type(error).__name__} in a thread"))
        else:
            self._tell(self.outcome.set_result, result)

    def _tell(self, settle: Callable[[Any], object], value: Any) -> None:
        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, settle, value)

    def _settle(self, settle: Callable[[Any], object], value: Any) -> None:
        if not self.outcome.done():
            settle(value)


def in_thread(call: Callable[[], Result]) -> asyncio.Future[Result]:
    """As asyncio.to_thread, on a thread of its own."""
    worker = Worker("loading")
    outcome = worker.run(call)
    worker.stop()
    return outcome
