"""Turns of work on the event loop: however many requests have some, it holds up nobody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from app.inference.fair_queue import Caller, FairQueue

LONGEST_S = 0.0003  # of work between two rounds of the loop


class Turns:
    """Parts of work that together take at most about `LONGEST_S` in one round of the event loop.

    Callers that wait take turns, in proportion to their weights.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()
        self._spent_s = 0.0  # since the last round

    async def do(self, caller: Caller, work: Callable[[], object]) -> float:
        """Do a part of a caller's work when its turn comes; return the seconds that it took."""
        await self._begin(caller)
        seconds = LONGEST_S  # of work that raises
        try:
            seconds = timed(work)
        finally:
            self._spent_s += seconds
            await self._end()
        return seconds

    async def _begin(self, caller: Caller) -> None:
        if self._taken:
            loop = asyncio.get_running_loop()
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.add(caller, [turn])
            try:
                await turn
            except asyncio.CancelledError:
                self._waiting.discard(caller, turn, loop.time())
                if not turn.cancelled():  # it had become our turn
                    self._pass_on()
                raise
        self._taken = True

    async def _end(self) -> None:
        """End the turn, in the next round of the loop if enough was done in this one."""
        try:
            if self._spent_s > LONGEST_S:
                await asyncio.sleep(0)
                self._spent_s = 0.0
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        now = asyncio.get_running_loop().time()
        following = self._waiting.take(now)
        while following is not None and following.done():  # cancelled in this round of the loop
            following = self._waiting.take(now)
        self._taken = following is not None
        if following is not None:
            following.set_result(None)


def timed(work: Callable[[], object]) -> float:
    """Do the work and return the seconds that it took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
