"""Watch runs of the engine: errors, silence for too long, and failures in a row."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from app.errors import EngineError, LeukoError
from app.inference.threads import Heartbeat, Worker

Item = TypeVar("Item")
Result = TypeVar("Result")

SUSPICIOUS = 8  # failed runs in a row

Run = Callable[[list[Item], bool, Heartbeat], Sequence[Result | LeukoError]]


class Hung(Exception):
    """A run gave no heartbeat for too long."""


class Watchdog(Generic[Item, Result]):
    """Run batches on a worker's thread and check the outcome.

    run: called with the items, whether it is the only run, and a heartbeat to call at least every silence_s;
    returns one result or LeukoError per item, in order.
    on_suspicion: called after SUSPICIOUS runs in a row without a single result.
    """

    def __init__(
        self, run: Run[Item, Result], *, silence_s: float, on_suspicion: Callable[[], object]
    ) -> None:
        self._run = run
        self._silence_s = silence_s
        self._on_suspicion = on_suspicion
        self._failures = 0

    async def run(self, worker: Worker, items: list[Item], exclusive: bool) -> list[Result | LeukoError]:
        """Return one outcome per item, in order.

        Raise EngineError when the run fails as a whole. Raise Hung when it stays silent: its thread is still
        blocked then, and the worker must not be used again.
        """
        last_heartbeat = time.monotonic()

        def heartbeat() -> None:
            nonlocal last_heartbeat
            last_heartbeat = time.monotonic()

        future = worker.run(partial(self._call, items, exclusive, heartbeat))
        while (left := last_heartbeat + self._silence_s - time.monotonic()) > 0:
            done, _ = await asyncio.wait([future], timeout=None if left == math.inf else left)
            if done:
                return self._judge(future, len(items))
        raise Hung(f"The engine gave no heartbeat for {self._silence_s:g} s on a batch of {len(items)}.")

    def _call(self, items: list[Item], exclusive: bool, heartbeat: Heartbeat) -> list[Result | LeukoError]:
        try:
            outcomes = list(self._run(items, exclusive, heartbeat))
        except BaseException as error:  # SystemExit too: only this batch may fail
            raise EngineError("The engine failed on this image.") from error
        if len(outcomes) != len(items):
            raise EngineError(f"The engine returned {len(outcomes)} results for {len(items)} images.")
        return outcomes

    def _judge(
        self, future: asyncio.Future[list[Result | LeukoError]], items: int
    ) -> list[Result | LeukoError]:
        try:
            outcomes = future.result()
        except EngineError:
            if items == 1:  # a larger batch is retried item by item, and counted then
                self._count_failure()
            raise
        if all(isinstance(outcome, EngineError) for outcome in outcomes):
            self._count_failure()
        else:
            self._failures = 0
        return outcomes

    def _count_failure(self) -> None:
        self._failures += 1
        if self._failures >= SUSPICIOUS:
            self._failures = 0
            self._on_suspicion()
