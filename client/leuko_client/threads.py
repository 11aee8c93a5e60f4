"""What `Client` does in its own way: threads. `tasks` is the counterpart for `AsyncClient`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from time import sleep as sleep
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Sleep = Callable[[float], object]


def map_ahead(call: Callable[[Item], Result], items: Iterable[Item], concurrency: int) -> Generator[Result]:
    """Yield the results in the order of the items, with at most `concurrency` calls running.

    Takes at most 2 × `concurrency` items ahead of the caller. Closing the generator cancels the calls that
    have not started and waits for the others.
    """
    calls: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(concurrency)
    try:
        for item in items:
            calls.append(pool.submit(call, item))
            if len(calls) >= 2 * concurrency:
                yield calls.popleft().result()
        while calls:
            yield calls.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
