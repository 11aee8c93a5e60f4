"""Runs of the engine, each on a worker's thread: what fails, goes silent or always fails is noticed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from app.errors import EngineError, LeukoError
from app.inference.threads import Heartbeat, Worker

Item = TypeVar("Item")
Result = TypeVar("Result")

SUSPICIOUS = 8  # runs that fail one after another

Run = Callable[[list[Item], bool, Heartbeat], Sequence[Result | LeukoError]]


class Hung(Exception):
    """A run gave no sign of life for too long."""


class Watchdog(Generic[Item, Result]):
    """`run` may be silent for silence_s; `on_suspicion` hears of SUSPICIOUS runs without any answer."""

    def __init__(
        self, run: Run[Item, Result], *, silence_s: float, on_suspicion: Callable[[], object]
    ) -> None:
        self._run = run
        self._silence_s = silence_s
        self._on_suspicion = on_suspicion
        self._failures = 0

    async def answers(self, worker: Worker, items: list[Item], exclusive: bool) -> list[Result | LeukoError]:
        """One a item, in order; raises EngineError, and Hung, after which the worker is of no use."""
        heard = time.monotonic()

        def heartbeat() -> None:
            nonlocal heard
            heard = time.monotonic()

        answers = worker.run(lambda: self._answer(items, exclusive, heartbeat))
        while (left := heard + self._silence_s - time.monotonic()) > 0:
            done, _ = await asyncio.wait([answers], timeout=None if left == math.inf else left)
            if done:
                return self._judge(answers, len(items))
        raise Hung(f"The engine was silent for {self._silence_s:g} s on a batch of {len(items)}.")

    def _answer(self, items: list[Item], exclusive: bool, heartbeat: Heartbeat) -> list[Result | LeukoError]:
        try:
            outcomes = list(self._run(items, exclusive, heartbeat))
        except BaseException as error:  # what ends a thread must not end more than its own batch
            raise EngineError("The engine failed on this image.") from error
        if len(outcomes) != len(items):
            raise EngineError(f"The engine gave {len(outcomes)} answers to {len(items)} images.")
        return outcomes

    def _judge(
        self, answers: asyncio.Future[list[Result | LeukoError]], items: int
    ) -> list[Result | LeukoError]:
        try:
            outcomes = answers.result()
        except EngineError:
            if items == 1:  # several will be tried one by one
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
