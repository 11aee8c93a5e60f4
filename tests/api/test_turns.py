from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from app.api.turns import LONGEST_S, Turns
from app.inference.fair_queue import Caller

HEAVY, LIGHT = Caller("heavy"), Caller("light")


def long(done: list[str], name: str) -> Callable[[], None]:
    """Return work that takes a whole round of the loop and notes its name."""

    def work() -> None:
        end = time.perf_counter() + 2 * LONGEST_S
        while time.perf_counter() < end:
            pass
        done.append(name)

    return work


async def rounds(done: list[str]) -> None:
    """Note every round of the event loop."""
    while True:
        done.append("round")
        await asyncio.sleep(0)


def test_long_work_of_many_requests_is_done_one_part_in_each_round_of_the_loop() -> None:
    async def scenario() -> list[str]:
        turns, done = Turns(), list[str]()
        probe = asyncio.create_task(rounds(done))
        await asyncio.gather(*(turns.do(HEAVY, long(done, "work")) for _ in range(20)))
        probe.cancel()
        return done

    done = asyncio.run(scenario())
    assert done.count("work") == 20
    assert ("work", "work") not in set(pairwise(done))


def test_short_work_waits_for_nothing() -> None:
    async def scenario() -> list[str]:
        turns, done = Turns(), list[str]()
        probe = asyncio.create_task(rounds(done))
        for _ in range(3):
            await turns.do(HEAVY, lambda: done.append("work"))
        probe.cancel()
        return done

    assert asyncio.run(scenario()) == ["work"] * 3


def test_a_caller_with_little_work_overtakes_one_with_much() -> None:
    async def scenario() -> list[str]:
        turns, done = Turns(), list[str]()
        tasks = [asyncio.create_task(turns.do(HEAVY, long(done, "heavy"))) for _ in range(30)]
        await asyncio.sleep(0)
        await turns.do(LIGHT, long(done, "light"))
        await asyncio.gather(*tasks)
        return done

    done = asyncio.run(scenario())
    assert done.index("light") <= 2
    assert len(done) == 31


def test_work_that_fails_or_is_given_up_ends_nobody_elses_turn() -> None:
    async def scenario() -> list[str]:
        turns, done = Turns(), list[str]()
        tasks = [asyncio.create_task(turns.do(HEAVY, long(done, str(number)))) for number in range(5)]
        failing = asyncio.create_task(turns.do(LIGHT, lambda: [][0]))
        await asyncio.sleep(0)
        for number in (0, 2, 3):
            tasks[number].cancel()
        with pytest.raises(IndexError):
            await failing
        await asyncio.wait(tasks)
        async with asyncio.timeout(30):
            await turns.do(LIGHT, lambda: done.append("last"))
        return done

    assert asyncio.run(scenario()) == ["0", "1", "4", "last"]


def test_a_turn_is_not_given_to_work_that_was_given_up_in_the_same_round() -> None:
    async def scenario() -> list[str]:
        turns, done = Turns(), list[str]()
        tasks = [asyncio.create_task(turns.do(HEAVY, long(done, str(number)))) for number in range(4)]
        await asyncio.sleep(0)  # the first works; now, before it ends its turn, two that wait are cancelled
        asyncio.get_running_loop().call_soon(tasks[1].cancel)
        asyncio.get_running_loop().call_soon(tasks[2].cancel)
        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [
            float,
            asyncio.CancelledError,
            asyncio.CancelledError,
            float,
        ]
        return done

    assert asyncio.run(scenario()) == ["0", "3"]


def test_many_that_give_up_at_any_time_hold_up_nobody() -> None:
    async def scenario() -> None:
        turns, done = Turns(), list[str]()
        random = Random(0)
        for _ in range(60):
            tasks = [asyncio.create_task(turns.do(HEAVY, long(done, "work"))) for _ in range(8)]
            for task in random.sample(tasks, 5):
                for _ in range(random.randrange(4)):
                    await asyncio.sleep(0)
                task.cancel()
            async with asyncio.timeout(30):
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {float, asyncio.CancelledError}

    asyncio.run(scenario())
