"""Threads for the work of requests: turns, limits, and what is kept of requests whose client has left."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from threading import Event

import pytest

from app.errors import QueueFull
from app.inference.threads import Pool
from app.observability.request_context import RequestContext


@dataclass
class Held:
    holders: int = 1

    def hold(self) -> None:
        self.holders += 1

    def close(self) -> None:
        self.holders -= 1


class Body:
    """Something in memory whose end can be seen."""

    def use(self) -> None:
        pass


def context(caller: str = "a", holding: Held | None = None, weight: int = 1) -> RequestContext:
    return RequestContext("id", 0.0, caller=caller, weight=weight, holding=holding)


@asynccontextmanager
async def busy(pool: Pool, of: RequestContext) -> AsyncIterator[asyncio.Future[None]]:
    """A call of a request that has begun, and ends when the block does."""
    begun, go = asyncio.Event(), Event()
    loop = asyncio.get_running_loop()

    def hold() -> None:
        loop.call_soon_threadsafe(begun.set)
        go.wait()

    future = pool.run(hold, of)
    await begun.wait()
    try:
        yield future
    finally:
        go.set()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.001)


def test_a_call_that_was_cancelled_before_it_began_is_not_made() -> None:
    async def scenario() -> list[str]:
        pool, made = Pool("test", 1), list[str]()
        async with busy(pool, context()):
            left = pool.run(lambda: made.append("left"), context())
            left.cancel()
            last = pool.run(lambda: made.append("last"), context())
        await last
        return made

    assert asyncio.run(scenario()) == ["last"]


def test_a_call_that_was_cancelled_while_it_waited_leaves_nothing_in_memory() -> None:
    async def scenario() -> None:
        pool, held, body = Pool("test", 1), Held(), Body()
        kept = weakref.ref(body)
        async with busy(pool, context()):
            future = pool.run(body.use, context(holding=held))
            del body
            assert kept() is not None
            assert held.holders == 2
            future.cancel()
            await until(lambda: held.holders == 1)
            del future
            assert kept() is None  # while the call before it still runs

    asyncio.run(scenario())


def test_what_a_request_holds_stays_held_until_its_call_has_ended() -> None:
    async def scenario() -> None:
        pool, held = Pool("test", 1), Held()
        async with busy(pool, context(holding=held)) as future:
            future.cancel()
            await asyncio.sleep(0)
            held.close()  # its request ends
            assert held.holders == 1
        await until(lambda: held.holders == 0)

    asyncio.run(scenario())


def test_nothing_is_held_any_more_when_the_result_is_there() -> None:
    async def scenario() -> None:
        pool, held = Pool("test", 2), Held()
        assert await pool.run(lambda: 1, context(holding=held)) == 1
        assert held.holders == 1
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 // 0, context(holding=held))
        assert held.holders == 1

    asyncio.run(scenario())


def test_a_call_that_fails_after_its_client_left_leaves_nothing_in_memory() -> None:
    class Failing(Body):
        def use(self) -> None:
            begun.set()
            go.wait()
            raise ValueError

    async def scenario() -> None:
        pool, held, body = Pool("test", 1), Held(), Failing()
        kept = weakref.ref(body)
        future = pool.run(body.use, context(holding=held))
        await until(begun.is_set)
        future.cancel()
        del body, future
        go.set()
        await until(lambda: held.holders == 1)
        await until(lambda: kept() is None)  # without the garbage collector

    begun, go = Event(), Event()
    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()


def test_callers_take_turns_by_weight() -> None:
    async def scenario() -> str:
        pool, made = Pool("test", 1), list[str]()
        async with busy(pool, context("x")):
            calls = [pool.run(lambda: made.append("a"), context("a")) for _ in range(6)]
            calls += [pool.run(lambda: made.append("b"), context("b", weight=2)) for _ in range(4)]
        await asyncio.gather(*calls)
        return "".join(made)

    assert asyncio.run(scenario()).index("b") < 2
    assert asyncio.run(scenario())[:6].count("b") >= 3


def test_a_caller_never_has_the_last_thread() -> None:
    async def scenario() -> None:
        pool = Pool("test", 2)
        async with busy(pool, context("a")):
            second = pool.run(lambda: None, context("a"))
            await pool.run(lambda: None, context("b"))
            assert not second.done()
        await second

    asyncio.run(scenario())


def test_few_calls_of_a_caller_may_wait() -> None:
    async def scenario() -> None:
        pool, held = Pool("tests", 1, most_waiting=2), Held()
        async with busy(pool, context("a")):
            first, second = (pool.run(lambda: None, context("a", held)) for _ in range(2))
            with pytest.raises(QueueFull, match="Too many tests of this caller"):
                pool.run(lambda: None, context("a", held))
            other = pool.run(lambda: None, context("b"))
            first.cancel()
            await asyncio.sleep(0)
            third = pool.run(lambda: None, context("a", held))  # in the place of the one that left
        await asyncio.gather(second, third, other)
        assert held.holders == 1

    asyncio.run(scenario())


def test_a_loop_that_was_closed_keeps_no_thread() -> None:
    pool, go = Pool("test", 1), Event()

    async def leave() -> None:
        pool.run(go.wait, context())

    async def come() -> int:
        return await pool.run(lambda: 1, context())

    asyncio.run(leave())
    go.set()
    assert asyncio.run(come()) == 1
