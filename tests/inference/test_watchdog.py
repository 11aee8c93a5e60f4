"""Runs of the engine that hang, raise, or fail in a row."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from app.errors import EngineError, LeukoError, UndecodableImage
from app.inference.threads import Heartbeat, Worker
from app.inference.watchdog import SUSPICIOUS, Hung, Run, Watchdog

Outcomes = Sequence[str | LeukoError]


async def answers(run: Run[str, str], items: str = "a", *, times: int = 1, **options: Any) -> list[Any]:
    """Run the same items `times` times; return the answers or the errors."""
    worker = Worker("worker")
    defaults: dict[str, Any] = {"silence_s": 1000.0, "on_suspicion": lambda: None}
    runs = Watchdog(run, **defaults | options)
    try:
        calls = [runs.run(worker, list(items), True) for _ in range(times)]
        return [(await asyncio.gather(call, return_exceptions=True))[0] for call in calls]
    finally:
        worker.stop()


def test_a_run_without_heartbeat_raises_hung() -> None:
    go = threading.Event()

    def hang(items: list[str], _: bool, __: Heartbeat) -> Outcomes:
        go.wait(30)
        return items

    [outcome] = asyncio.run(answers(hang, silence_s=0.05))
    go.set()
    assert isinstance(outcome, Hung)


def test_a_run_with_heartbeats_may_take_longer() -> None:
    def run_slowly(items: list[str], _: bool, heartbeat: Heartbeat) -> Outcomes:
        for _step in range(8):
            time.sleep(0.1)
            heartbeat()
        return items

    assert asyncio.run(answers(run_slowly, silence_s=0.5)) == [["a"]]


@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError(), SystemExit(1), KeyboardInterrupt()])
def test_any_exception_of_a_run_is_an_engine_error(error: BaseException) -> None:
    def fail(*_: object) -> Outcomes:
        raise error

    [outcome] = asyncio.run(answers(fail))
    assert isinstance(outcome, EngineError)
    assert outcome.__cause__ is error


def broken(*_: object) -> Outcomes:
    raise RuntimeError("broken")


def not_finite(items: list[str], *_: object) -> Outcomes:
    return [EngineError("not finite") for _ in items]


def undecodable(items: list[str], *_: object) -> Outcomes:
    return [UndecodableImage("cut") for _ in items]


@pytest.mark.parametrize(
    ("run", "items", "suspicions"),
    [(broken, "a", 2), (not_finite, "abc", 2), (broken, "abc", 0), (undecodable, "abc", 0)],
)
def test_runs_that_fail_one_after_another_raise_a_suspicion(
    run: Run[str, str], items: str, suspicions: int
) -> None:
    seen: list[bool] = []
    asyncio.run(answers(run, items, times=2 * SUSPICIOUS, on_suspicion=lambda: seen.append(True)))
    assert len(seen) == suspicions


def test_a_good_answer_resets_the_count_of_failures() -> None:
    seen: list[bool] = []
    count = iter(range(1000))

    def fail_mostly(items: list[str], *_: object) -> Outcomes:
        if next(count) % SUSPICIOUS:
            raise RuntimeError("broken")
        return items

    asyncio.run(answers(fail_mostly, times=4 * SUSPICIOUS, on_suspicion=lambda: seen.append(True)))
    assert not seen
