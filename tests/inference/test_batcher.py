"""The batcher with a fake engine that a test can block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.errors import DeadlinePassed, EngineError, LeukoError, NotReady, QueueFull, TooLarge
from app.inference.batcher import ANYONE, QUIET_S, Batcher, BatchStats, Postponed
from app.inference.fair_queue import RECENT_S, Caller
from app.inference.threads import Heartbeat

Outcomes = list[str | LeukoError]
PATIENCE_S = 30
HEAVY, LIGHT, OTHER = Caller("key:heavy"), Caller("key:light"), Caller("key:other")


class FakeEngine:
    """Return `item!` for each item; while held, block at the start of each batch until `go`."""

    def __init__(self, *, held: bool = False, poison: Iterable[str] = ()) -> None:
        self.batches: list[list[str]] = []
        self.exclusive: list[bool] = []
        self.poison = set(poison)
        self._busy = threading.Semaphore(0)
        self._go = threading.Event()
        if not held:
            self._go.set()

    def run(self, items: list[str], exclusive: bool, _: Heartbeat) -> Outcomes:
        self.batches.append(items)
        self.exclusive.append(exclusive)
        self._busy.release()
        assert self._go.wait(PATIENCE_S)
        if self.poison.intersection(items):
            raise RuntimeError("poison")
        return [f"{item}!" for item in items]

    async def busy(self) -> None:
        """Return once another batch has reached the engine."""
        assert await asyncio.to_thread(self._busy.acquire, timeout=PATIENCE_S)

    def go(self) -> None:
        self._go.set()

    def hold(self) -> None:
        self._go.clear()


@asynccontextmanager
async def serving(engine: FakeEngine, **options: Any) -> AsyncIterator[Batcher[str, str]]:
    batcher: Batcher[str, str] = Batcher(engine.run, **{"max_batch": 4, "max_queue": 16} | options)
    await batcher.start()
    try:
        yield batcher
    finally:
        engine.go()
        await batcher.drain()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def queued(
    batcher: Batcher[str, str], items: Iterable[str], caller: Caller = ANYONE
) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(batcher.submit(item, caller=caller)) for item in items]
    depth = batcher.depth + len(tasks)
    await until(lambda: batcher.depth == depth or any(task.done() for task in tasks))
    assert batcher.depth == depth
    return tasks


async def occupied(batcher: Batcher[str, str], engine: FakeEngine) -> asyncio.Task[str]:
    """Put a first item into a held engine, so that later items wait in the queue."""
    task = asyncio.create_task(batcher.submit("first"))
    await engine.busy()
    return task


class ClockedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock a test can put forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def in_seconds(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def put_forward(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    assert isinstance(loop, ClockedLoop)
    loop.ahead += seconds


def run(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=ClockedLoop) as runner:
        runner.run(scenario)


def test_one_item_is_answered_alone() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with serving(engine) as batcher:
            assert await batcher.submit("a") == "a!"
        assert engine.batches == [["a"]]

    run(scenario())


def test_items_that_arrive_while_the_engine_runs_form_the_next_batch_up_to_max_batch() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as batcher:
            first = await occupied(batcher, engine)
            tasks = await queued(batcher, "abcdef")
            engine.go()
            assert await first == "first!"
            assert await asyncio.gather(*tasks) == ["a!", "b!", "c!", "d!", "e!", "f!"]
        assert engine.batches == [["first"], list("abcd"), list("ef")]

    run(scenario())


def test_one_worker_runs_in_one_thread_that_is_not_the_loop_s() -> None:
    async def scenario() -> None:
        threads: set[int] = set()

        def identify(items: list[int], *_: object) -> list[int]:
            threads.add(threading.get_ident())
            return items

        batcher: Batcher[int, int] = Batcher(identify, max_batch=1, max_queue=8)
        await batcher.start()
        assert await batcher.submit_many(range(8)) == list(range(8))
        await batcher.drain()
        assert len(threads) == 1
        assert threading.get_ident() not in threads

    run(scenario())


def test_workers_share_the_queue_and_run_at_the_same_time() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, workers=2, max_batch=4) as batcher:
            request = asyncio.create_task(batcher.submit_many(list("abcde")))
            await engine.busy()
            await engine.busy()
            assert sorted(engine.batches) == [list("abc"), list("de")]
            late = await queued(batcher, "fghijk")
            engine.go()
            assert await request == [f"{item}!" for item in "abcde"]
            assert await asyncio.gather(*late) == [f"{item}!" for item in "fghijk"]
        assert sum(map(len, engine.batches)) == 11
        assert max(map(len, engine.batches)) <= 4

    run(scenario())


def test_a_run_is_exclusive_only_when_nothing_else_runs_or_waits() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, workers=2) as batcher:
            first = await occupied(batcher, engine)
            second = asyncio.create_task(batcher.submit("second"))
            await engine.busy()
            engine.go()
            await asyncio.gather(first, second)
            await batcher.submit("third")
            await batcher.submit("fourth", bulk=True)
            await batcher.submit_many(["fifth", "sixth"])
        assert sorted(engine.batches[4:]) == [["fifth"], ["sixth"]]
        assert engine.exclusive == [True, False, True, True, False, False]

    run(scenario())


def test_a_full_queue_refuses_with_a_retry_after_in_whole_seconds() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_queue=2) as batcher:
            first = await occupied(batcher, engine)
            tasks = await queued(batcher, "ab")
            with pytest.raises(QueueFull) as refusal:
                await batcher.submit("c")
            assert isinstance(refusal.value.retry_after, int)
            assert refusal.value.retry_after >= 1
            assert (batcher.depth, batcher.capacity) == (2, 2)
            engine.go()
            assert await asyncio.gather(first, *tasks) == ["first!", "a!", "b!"]
        assert engine.batches == [["first"], ["a", "b"]]

    run(scenario())


def test_retry_after_is_the_time_to_empty_the_queue_at_the_measured_pace() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_queue=3) as batcher:
            paced = await occupied(batcher, engine)
            put_forward(asyncio.get_running_loop(), 10)
            engine.go()
            await paced
            engine.hold()
            first = await occupied(batcher, engine)
            tasks = await queued(batcher, "abc")
            with pytest.raises(QueueFull) as refusal:
                await batcher.submit("d")
            assert refusal.value.retry_after >= 30
            engine.go()
            await asyncio.gather(first, *tasks)

    run(scenario())


def test_an_item_cancelled_while_queued_frees_its_place_and_is_never_inferred() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_queue=2) as batcher:
            first = await occupied(batcher, engine)
            leaving, staying = await queued(batcher, ["leaving", "staying"])
            leaving.cancel()
            await until(leaving.done)
            assert batcher.depth == 1
            [late] = await queued(batcher, ["late"])
            engine.go()
            assert [await task for task in (first, staying, late)] == ["first!", "staying!", "late!"]
        assert engine.batches == [["first"], ["staying", "late"]]

    run(scenario())


def test_cancelling_a_caller_while_the_engine_runs_does_not_affect_others() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as batcher:
            tasks = [asyncio.create_task(batcher.submit(item)) for item in "abc"]
            await engine.busy()
            tasks[1].cancel()
            await until(tasks[1].done)
            engine.go()
            assert await tasks[0] == "a!"
            assert await tasks[2] == "c!"
            assert await batcher.submit("d") == "d!"
        assert engine.batches == [list("abc"), ["d"]]

    run(scenario())


def test_an_item_that_breaks_the_engine_fails_alone_and_the_rest_of_its_batch_is_answered() -> None:
    async def scenario() -> None:
        engine = FakeEngine(poison=["7"])
        names = [str(number) for number in range(16)]
        async with serving(engine, max_batch=16) as batcher:
            outcomes = await batcher.submit_many(names)
            assert batcher.alive
        failure = outcomes.pop(7)
        names.remove("7")
        assert outcomes == [f"{name}!" for name in names]
        assert isinstance(failure, EngineError)
        assert isinstance(failure.__cause__, RuntimeError)

    run(scenario())


def test_an_error_given_for_one_item_is_raised_to_its_caller_only() -> None:
    async def scenario() -> None:
        def run_partly(items: list[str], _: bool, __: Heartbeat) -> Outcomes:
            return [EngineError("not a number") if item == "bad" else item for item in items]

        batcher: Batcher[str, str] = Batcher(run_partly, max_batch=4, max_queue=4)
        await batcher.start()
        good, bad = (asyncio.create_task(batcher.submit(item)) for item in ("good", "bad"))
        assert await good == "good"
        with pytest.raises(EngineError, match="not a number"):
            await bad
        await batcher.drain()

    run(scenario())


def test_a_wrong_number_of_answers_is_a_failure_of_the_engine() -> None:
    async def scenario() -> None:
        batcher: Batcher[str, str] = Batcher(lambda items, *_: items[1:], max_batch=4, max_queue=4)
        await batcher.start()
        outcomes = await batcher.submit_many(["a", "b"])
        await batcher.drain()
        assert [type(outcome) for outcome in outcomes] == [EngineError, EngineError]

    run(scenario())


def test_an_engine_that_raises_stop_iteration_does_not_hang_its_callers() -> None:
    async def scenario() -> None:
        def run_dry(*_: object) -> Outcomes:
            raise StopIteration

        batcher: Batcher[str, str] = Batcher(run_dry, max_batch=4, max_queue=4)
        await batcher.start()
        with pytest.raises(EngineError):
            await batcher.submit("a")
        await batcher.drain()

    run(scenario())


def test_cancelled_items_are_not_retried_after_a_failed_batch() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True, poison=["a"])
        async with serving(engine) as batcher:
            tasks = [asyncio.create_task(batcher.submit(item)) for item in "abc"]
            await engine.busy()
            tasks[1].cancel()
            await until(tasks[1].done)
            engine.go()
            with pytest.raises(EngineError):
                await tasks[0]
            assert await tasks[2] == "c!"
        assert engine.batches == [list("abc"), ["a"], ["c"]]

    run(scenario())


def test_a_deadline_fires_while_the_engine_runs_and_the_item_is_never_inferred() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as batcher:
            first = await occupied(batcher, engine)
            late = asyncio.create_task(batcher.submit("late", deadline=in_seconds(1000)))
            await until(lambda: batcher.depth == 1)
            put_forward(asyncio.get_running_loop(), 1000)
            with pytest.raises(DeadlinePassed):
                await late
            assert batcher.depth == 0
            assert not first.done()
            engine.go()
            assert await first == "first!"
        assert engine.batches == [["first"]]

    run(scenario())


def test_a_deadline_fires_for_an_item_that_is_in_the_engine() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as batcher:
            late = asyncio.create_task(batcher.submit("late", deadline=in_seconds(1000)))
            await engine.busy()
            put_forward(asyncio.get_running_loop(), 1000)
            with pytest.raises(DeadlinePassed):
                await late

    run(scenario())


def test_an_item_whose_deadline_has_passed_already_is_never_inferred() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with serving(engine) as batcher:
            past = in_seconds(-1)
            with pytest.raises(DeadlinePassed):
                await batcher.submit("late", deadline=past)
            with pytest.raises(DeadlinePassed):
                await batcher.submit("late", deadline=past, bulk=True)
            assert [type(outcome) for outcome in await batcher.submit_many(["x", "y"], deadline=past)] == [
                DeadlinePassed,
                DeadlinePassed,
            ]
        assert engine.batches == []

    run(scenario())


def test_answers_made_before_the_deadline_are_kept_when_the_rest_of_a_request_is_late() -> None:
    async def scenario() -> None:
        engine = FakeEngine()

        def run_then_hold(items: list[str], exclusive: bool, heartbeat: Heartbeat) -> Outcomes:
            answers = engine.run(items, exclusive, heartbeat)
            engine.hold()
            return answers

        batcher: Batcher[str, str] = Batcher(run_then_hold, max_batch=1, max_queue=4)
        await batcher.start()
        request = asyncio.create_task(batcher.submit_many(["early", "late"], deadline=in_seconds(1000)))
        await engine.busy()
        await engine.busy()
        put_forward(asyncio.get_running_loop(), 1000)
        early, late = await request
        engine.go()
        await batcher.drain()
        assert early == "early!"
        assert isinstance(late, DeadlinePassed)

    run(scenario())


def test_many_items_are_admitted_whole_or_not_at_all() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_queue=4) as batcher:
            first = await occupied(batcher, engine)
            tasks = await queued(batcher, "ab")
            with pytest.raises(QueueFull):
                await batcher.submit_many(list("xyz"))
            assert batcher.depth == 2
            both = asyncio.create_task(batcher.submit_many(list("cd")))
            await until(lambda: batcher.depth == 4)
            engine.go()
            assert await asyncio.gather(first, *tasks) == ["first!", "a!", "b!"]
            assert await both == ["c!", "d!"]

    run(scenario())


def test_more_items_than_the_queue_can_ever_hold_are_too_large() -> None:
    async def scenario() -> None:
        async with serving(FakeEngine(), max_queue=4) as batcher:
            with pytest.raises(TooLarge, match="5 images in one request; at most 4"):
                await batcher.submit_many(list("abcde"))
            assert await batcher.submit_many([]) == []

    run(scenario())


def test_all_items_of_a_cancelled_request_are_dropped() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as batcher:
            first = await occupied(batcher, engine)
            request = asyncio.create_task(batcher.submit_many(list("abc")))
            await until(lambda: batcher.depth == 3)
            request.cancel()
            await until(request.done)
            assert batcher.depth == 0
            engine.go()
            await first
        assert engine.batches == [["first"]]

    run(scenario())


def test_draining_finishes_what_is_queued_and_admits_nothing_more() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as batcher:
            first = await occupied(batcher, engine)
            tasks = await queued(batcher, "abcdef")
            drained = asyncio.create_task(batcher.drain())
            await asyncio.sleep(0)
            for bulk in (False, True):
                with pytest.raises(NotReady):
                    await batcher.submit("late", bulk=bulk)
            engine.go()
            await drained
            assert not batcher.alive
            assert await asyncio.gather(first, *tasks) == [f"{item}!" for item in ["first", *"abcdef"]]

    run(scenario())


def test_cancelling_a_drain_fails_the_items_still_waiting() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as batcher:
            tasks = [await occupied(batcher, engine), *await queued(batcher, "ab")]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(batcher.drain(), 0.01)
            for task in tasks:
                with pytest.raises(NotReady):
                    await task
            assert not batcher.alive

    run(scenario())


def test_nothing_is_admitted_before_the_start() -> None:
    async def scenario() -> None:
        batcher: Batcher[str, str] = Batcher(FakeEngine().run, max_batch=4, max_queue=4)
        assert not batcher.alive
        with pytest.raises(NotReady):
            await batcher.submit("a")
        await batcher.drain()

    run(scenario())


@pytest.mark.parametrize("workers", [1, 2])
def test_the_death_of_a_worker_fails_every_waiting_item_and_stops_the_batcher(workers: int) -> None:
    def die(_: BatchStats) -> None:
        raise RuntimeError("a defect")

    async def scenario() -> None:
        engine = FakeEngine(held=True)
        batcher: Batcher[str, str] = Batcher(
            engine.run, max_batch=1, max_queue=8, workers=workers, on_batch=die
        )
        await batcher.start()
        assert batcher.alive
        running = await occupied(batcher, engine)
        waiting = [asyncio.create_task(batcher.submit(item)) for item in "ab"]
        bulk = [asyncio.create_task(batcher.submit(item, bulk=True)) for item in "wxyz"]
        await asyncio.sleep(0)
        engine.go()
        outcomes = await asyncio.gather(running, *waiting, *bulk, return_exceptions=True)
        answered = [outcome for outcome in outcomes if isinstance(outcome, str)]
        # Every worker holds one item when the engine goes on, and the first that ends stops the batcher.
        assert 1 <= len(answered) <= workers
        assert workers > 1 or answered == ["first!"]
        assert sum(isinstance(outcome, NotReady) for outcome in outcomes) == len(outcomes) - len(answered)
        assert not batcher.alive
        assert batcher.depth == 0
        with pytest.raises(NotReady):
            await batcher.submit("c")
        await batcher.drain()

    run(scenario())


def test_an_engine_without_heartbeat_is_abandoned_and_every_waiting_item_fails() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        batcher: Batcher[str, str] = Batcher(engine.run, max_batch=1, max_queue=8, silence_s=0.05)
        await batcher.start()
        tasks = [asyncio.create_task(batcher.submit(item)) for item in "abc"]
        assert {type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)} == {NotReady}
        await batcher.died()
        assert not batcher.alive
        engine.go()

    run(scenario())


def test_interactive_items_go_first_and_bulk_takes_the_rest_of_the_batch() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_batch=4, short_batch=2) as batcher:
            first = await occupied(batcher, engine)
            bulk = [asyncio.create_task(batcher.submit(item, bulk=True)) for item in "wxyz"]
            await asyncio.sleep(0)
            tasks = await queued(batcher, "ab")
            engine.go()
            await asyncio.gather(first, *bulk, *tasks)
        assert engine.batches == [["first"], list("abwx"), list("yz")]

    run(scenario())


def test_bulk_has_a_place_in_every_second_batch_that_interactive_items_could_fill() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_batch=4, short_batch=1) as batcher:
            first = await occupied(batcher, engine)
            bulk = [asyncio.create_task(batcher.submit(item, bulk=True)) for item in "yz"]
            await asyncio.sleep(0)
            tasks = await queued(batcher, "abcdefgh")
            engine.go()
            await asyncio.gather(first, *bulk, *tasks)
        assert engine.batches == [["first"], list("abcy"), list("defg"), list("hz")]

    run(scenario())


def test_batches_of_one_take_turns_so_that_neither_lane_starves() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_batch=1) as batcher:
            first = await occupied(batcher, engine)
            bulk = [asyncio.create_task(batcher.submit(item, bulk=True)) for item in "yz"]
            await asyncio.sleep(0)
            tasks = await queued(batcher, "abc")
            engine.go()
            await asyncio.gather(first, *bulk, *tasks)
        assert engine.batches == [["first"], ["y"], ["a"], ["z"], ["b"], ["c"]]

    run(scenario())


def test_bulk_waits_for_room_and_runs_in_short_batches_while_interactive_items_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.inference.batcher.QUIET_S", 3600.0)  # "one" is never long ago

    async def scenario() -> None:
        engine = FakeEngine()
        async with serving(engine, max_batch=8, max_queue=1, short_batch=2) as batcher:
            await batcher.submit("one")
            names = [str(number) for number in range(20)]
            answers = await asyncio.gather(*(batcher.submit(name, bulk=True) for name in names))
        assert answers == [f"{name}!" for name in names]
        assert max(map(len, engine.batches)) == 2

    run(scenario())


def test_bulk_leaves_one_worker_free_while_interactive_items_arrive_and_none_otherwise() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with serving(engine, workers=3, max_batch=2) as batcher:
            await batcher.submit("one")
            engine.hold()
            bulk = [asyncio.create_task(batcher.submit(item, bulk=True)) for item in "uvwxyz"]
            await engine.busy()
            await engine.busy()
            await engine.busy()
            two = asyncio.create_task(batcher.submit("two"))
            await engine.busy()
            assert sorted(engine.batches) == [["one"], ["two"], ["u"], ["v"]]
            engine.go()
            await asyncio.gather(two, *bulk)
            put_forward(asyncio.get_running_loop(), QUIET_S + 0.1)
            engine.hold()
            bulk = [asyncio.create_task(batcher.submit(item, bulk=True)) for item in "uvwxyz"]
            await until(lambda: sum(map(len, engine.batches[-3:])) == 6)
            engine.go()
            await asyncio.gather(*bulk)

    run(scenario())


def test_bulk_fills_whole_batches_after_a_time_without_interactive_items() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with serving(engine, max_batch=8, short_batch=2) as batcher:
            await batcher.submit("one")
            put_forward(asyncio.get_running_loop(), QUIET_S + 0.1)
            await asyncio.gather(*(batcher.submit(str(number), bulk=True) for number in range(16)))
        assert max(map(len, engine.batches)) == 8

    run(scenario())


def test_bulk_items_take_no_places_of_interactive_items_in_the_queue() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_queue=2, short_batch=4) as batcher:
            first = await occupied(batcher, engine)
            bulk = [asyncio.create_task(batcher.submit(str(number), bulk=True)) for number in range(20)]
            await asyncio.sleep(0)
            assert batcher.depth == 0
            tasks = await queued(batcher, "ab")
            engine.go()
            await asyncio.gather(first, *tasks, *bulk)

    run(scenario())


def test_a_deadline_fires_for_bulk_that_still_waits() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_batch=1) as batcher:
            first = await occupied(batcher, engine)
            late = asyncio.create_task(batcher.submit("late", bulk=True, deadline=in_seconds(1000)))
            await asyncio.sleep(0)
            put_forward(asyncio.get_running_loop(), 1000)
            with pytest.raises(DeadlinePassed):
                await late
            engine.go()
            assert await first == "first!"
        assert engine.batches == [["first"]]

    run(scenario())


def test_an_image_overtakes_the_backlog_of_another_caller_and_waits_for_short_runs_only() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_batch=4) as batcher:
            first = await occupied(batcher, engine)
            heavy = await queued(batcher, "abcdefgh", HEAVY)
            light = await queued(batcher, "x", LIGHT)
            engine.go()
            await asyncio.gather(first, *light)
            await asyncio.gather(*heavy)
        assert engine.batches.index(["x"]) <= 2
        assert all(len(batch) == 1 for batch in engine.batches)

    run(scenario())


def test_a_caller_alone_fills_whole_batches_again_after_a_time_without_others() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with serving(engine, max_batch=4) as batcher:
            await batcher.submit("x", caller=LIGHT)
            await batcher.submit_many(list("abcd"), caller=HEAVY)
            put_forward(asyncio.get_running_loop(), RECENT_S + 0.1)
            await batcher.submit_many(list("efgh"), caller=HEAVY)
        assert engine.batches == [["x"], ["a"], ["b"], ["c"], list("d"), list("efgh")]

    run(scenario())


def test_a_flood_leaves_one_worker_free_while_another_caller_is_active() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        async with serving(engine, workers=3, max_batch=2) as batcher:
            await batcher.submit("one", caller=LIGHT)
            engine.hold()
            flood = [asyncio.create_task(batcher.submit(item, caller=HEAVY)) for item in "abcdef"]
            for _ in range(3):
                await engine.busy()
            assert sorted(map(len, engine.batches)) == [1, 1, 1]  # "one" and two of the flood
            two = asyncio.create_task(batcher.submit("two", caller=LIGHT))
            await engine.busy()
            assert engine.batches[-1] == ["two"]
            engine.go()
            await asyncio.gather(two, *flood)

    run(scenario())


def test_single_images_of_many_callers_share_a_batch() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_batch=4) as batcher:
            first = await occupied(batcher, engine)
            tasks = [await queued(batcher, [item], Caller(item)) for item in "abcde"]
            engine.go()
            await asyncio.gather(first, *(task for [task] in tasks))
        assert engine.batches == [["first"], list("abcd"), ["e"]]

    run(scenario())


def test_floods_of_two_callers_share_whole_batches_in_turns() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_batch=4) as batcher:
            first = asyncio.create_task(batcher.submit("first", caller=HEAVY))
            await engine.busy()
            tasks = [*await queued(batcher, "abcd", HEAVY), *await queued(batcher, "wxyz", LIGHT)]
            engine.go()
            await asyncio.gather(first, *tasks)
        assert [sorted(batch) for batch in engine.batches[:2]] == [["first"], list("abwx")]

    run(scenario())


def test_a_queue_that_one_caller_filled_has_room_for_others_within_their_share() -> None:
    async def scenario() -> None:
        engine, refusals = FakeEngine(held=True), []
        async with serving(
            engine, max_queue=8, on_share_refusal=lambda: refusals.append("refused")
        ) as batcher:
            first = await occupied(batcher, engine)
            tasks = await queued(batcher, "abcdefgh", HEAVY)
            with pytest.raises(QueueFull):
                batcher.check_room(HEAVY)
            assert refusals == []  # alone: its share is the whole queue
            tasks += await queued(batcher, "wxyz", LIGHT)
            for caller in (HEAVY, LIGHT):
                assert not batcher.has_room(caller)
                with pytest.raises(QueueFull):
                    await batcher.submit("late", caller=caller)
            assert refusals == ["refused", "refused"]
            tasks += await queued(batcher, "u", OTHER)
            assert batcher.depth == 13
            engine.go()
            await asyncio.gather(first, *tasks)

    run(scenario())


def test_a_request_larger_than_its_share_finds_room_beside_a_full_queue_once() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_queue=8) as batcher:
            first = await occupied(batcher, engine)
            tasks = await queued(batcher, "abcdefgh", HEAVY)
            large = asyncio.create_task(batcher.submit_many(list("stuvwxyz"), caller=LIGHT))
            await until(lambda: batcher.depth == 16 or large.done())
            assert not large.done()
            with pytest.raises(QueueFull):
                await batcher.submit_many(list("stuvwxyz"), caller=OTHER)
            assert batcher.has_room(OTHER, 2)
            engine.go()
            await asyncio.gather(first, large, *tasks)

    run(scenario())


def test_retry_after_is_the_time_for_the_caller_s_own_backlog() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_queue=4) as batcher:
            paced = await occupied(batcher, engine)
            put_forward(asyncio.get_running_loop(), 10)
            engine.go()
            await paced
            engine.hold()
            first = await occupied(batcher, engine)
            tasks = [*await queued(batcher, "abcd", HEAVY), *await queued(batcher, "xy", LIGHT)]
            waits = []
            for caller in (HEAVY, LIGHT):
                with pytest.raises(QueueFull) as refusal:
                    batcher.check_room(caller)
                waits.append(refusal.value.retry_after)
            # 10 s an image; each gets every second run.
            assert waits == [pytest.approx(80, abs=2), pytest.approx(40, abs=2)]
            engine.go()
            await asyncio.gather(first, *tasks)

    run(scenario())


def test_bulk_of_two_callers_progresses_side_by_side() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_batch=2) as batcher:
            first = await occupied(batcher, engine)
            heavy = [
                asyncio.create_task(batcher.submit_many(list("abcdef"), caller=HEAVY, bulk=True))
                for _ in range(8)
            ]
            await asyncio.sleep(0)
            light = asyncio.create_task(batcher.submit_many(list("xyz"), caller=LIGHT, bulk=True))
            await asyncio.sleep(0)
            put_forward(asyncio.get_running_loop(), QUIET_S + 0.1)
            engine.go()
            await asyncio.gather(first, light, *heavy)
        assert [sorted(batch) for batch in engine.batches[1:4]] == [["a", "x"], ["b", "y"], ["c", "z"]]

    run(scenario())


def test_each_batch_is_reported_with_its_size_and_the_waits_of_its_items() -> None:
    async def scenario() -> None:
        engine = FakeEngine(held=True)
        reports: list[BatchStats] = []
        async with serving(engine, on_batch=reports.append) as batcher:
            first = await occupied(batcher, engine)
            tasks = await queued(batcher, "ab")
            engine.go()
            await asyncio.gather(first, *tasks)
        assert [report.size for report in reports] == [1, 2]
        assert [len(report.waits) for report in reports] == [1, 2]
        assert [len(report.first_waits) for report in reports] == [1, 1]
        assert all(wait >= 0 for report in reports for wait in report.waits)
        assert all(report.seconds >= 0 for report in reports)

    run(scenario())


class YieldingEngine(FakeEngine):
    """Looks at one item of a batch, and postpones the others if the batcher says that it must yield."""

    batcher: Batcher[str, str]

    def run(self, items: list[str], exclusive: bool, heartbeat: Heartbeat) -> Outcomes:
        done = super().run(items, exclusive, heartbeat)
        postpone = self.batcher.must_yield
        return [done[0], *(Postponed("later") if postpone else outcome for outcome in done[1:])]


@asynccontextmanager
async def yielding(
    items: str, *, bulk: bool = False
) -> AsyncIterator[tuple[YieldingEngine, Batcher[str, str], asyncio.Task[Outcomes]]]:
    """Have a held engine run the first items of HEAVY."""
    engine = YieldingEngine(held=True)
    async with serving(engine) as batcher:
        engine.batcher = batcher
        heavy = asyncio.create_task(batcher.submit_many(list(items), caller=HEAVY, bulk=bulk))
        await engine.busy()
        yield engine, batcher, heavy


def test_what_a_run_postpones_goes_behind_the_caller_that_waits_and_before_what_it_preceded() -> None:
    async def scenario() -> None:
        async with yielding("abcdef") as (engine, batcher, heavy):
            [light] = await queued(batcher, "x", LIGHT)
            engine.go()
            assert await light == "x!"
            assert await heavy == ["a!", "b!", "c!", "d!", "e!", "f!"]
        assert engine.batches[:3] == [list("abcd"), ["x"], ["b"]]
        assert [item for batch in engine.batches[2:] for item in batch] == list("bcdef")

    run(scenario())


def test_a_run_does_not_yield_to_callers_that_it_serves() -> None:
    async def scenario() -> None:
        async with yielding("abcdef") as (engine, batcher, heavy):
            assert not batcher.must_yield  # e and f wait
            engine.go()
            await heavy
        assert engine.batches == [list("abcd"), list("ef")]

    run(scenario())


def test_postponed_items_of_a_caller_that_has_left_are_dropped() -> None:
    async def scenario() -> None:
        async with yielding("abcd") as (engine, batcher, heavy):
            [light] = await queued(batcher, "x", LIGHT)
            heavy.cancel()
            await asyncio.wait([heavy])
            engine.go()
            assert await light == "x!"
        assert engine.batches == [list("abcd"), ["x"]]

    run(scenario())


def test_bulk_items_that_a_run_postpones_stay_in_their_lane() -> None:
    async def scenario() -> None:
        async with yielding("abcd", bulk=True) as (engine, batcher, heavy):
            [light] = await queued(batcher, "x", LIGHT)
            engine.go()
            assert await light == "x!"
            assert await heavy == ["a!", "b!", "c!", "d!"]
        assert engine.batches[0] == list("abcd")
        assert "x" in engine.batches[1]

    run(scenario())


def test_a_result_that_cost_more_counts_as_more_turns_of_its_caller() -> None:
    """HEAVY's first item is worth three: LIGHT has three items done before HEAVY's next."""

    async def scenario() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_batch=1, cost=lambda result: 3 if result == "a!" else 1) as batcher:
            first = await occupied(batcher, engine)
            heavy = await queued(batcher, "abc", HEAVY)
            light = await queued(batcher, "wxyz", LIGHT)
            engine.go()
            await asyncio.gather(first, *heavy, *light)
        assert [item for batch in engine.batches[1:] for item in batch] == list("awxybzc")

    run(scenario())
