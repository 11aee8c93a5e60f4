"""What `AsyncClient` does in its own way: tasks of asyncio. `threads` is the counterpart for `Client`."""

from __future__ import annotations

import asyncio
from asyncio import sleep as sleep
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Sleep = Callable[[float], Awaitable[object]]


async def map_ahead(
    call: Callable[[Item], Coroutine[Any, Any, Result]], items: Iterable[Item], concurrency: int
) -> AsyncGenerator[Result]:
    """Yield the results in the order of the items, with at most `concurrency` calls running.

    Takes an item from `items` only when its call can start. Closing the generator cancels the calls.
    """
    calls: deque[asyncio.Task[Result]] = deque()
    try:
        for item in items:
            calls.append(asyncio.create_task(call(item)))
            if len(calls) >= concurrency:
                yield await calls.popleft()
        while calls:
            yield await calls.popleft()
    finally:
        for task in calls:
            task.cancel()
