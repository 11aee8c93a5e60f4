"""Bodies of JSON: small ones are parsed in a thread, others in a process of their own.

A parser holds the interpreter lock from the first byte to the last, so a large body in a thread would delay
all other clients, and the memory that its values take would stay with the service.
"""

from __future__ import annotations

import asyncio
from contextlib import closing

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request

from app.api.json_tasks import JSON, Finished, Invalid, Task, pack, unpack
from app.api.uploads import media_type, read_body
from app.child_process import Child, ChildTimeout, ChildTooLarge
from app.errors import DeadlinePassed, TooLarge, UnsupportedFormat
from app.inference.threads import SHORT, Pool
from app.observability.request_context import RequestContext
from app.units import MIB

SMALL_BYTES = MIB // 4
SMALL_VALUES = 8192  # commas, colons and opening brackets
SLICE = MIB // 4  # bytes that are searched without letting other threads run
PROCESSES = 1  # at once, since each may take much memory
PROCESS_MIB = 768  # address space of each: 200,000 rows of four classes in 64 MiB need 500
PROCESS_S = 60.0
MOST_WAITING = 4  # large bodies of one caller

_PROCESSES = Pool("large bodies", PROCESSES, MOST_WAITING)


async def finish(
    request: Request, task: Task, size: int, context: RequestContext, deadline: float
) -> Finished:
    """Read a body of at most `size` bytes and do the task. When cancelled, stop at once.

    deadline: by the loop's clock. Raise UnsupportedFormat, TooLarge, BadLabels, QueueFull, DeadlinePassed or
    RequestValidationError.
    """
    if media_type(request) != JSON:
        raise UnsupportedFormat("send application/json")
    body = await read_body(request, size)
    try:
        finished = await SHORT.run(lambda: _do_small(task, body), context)
        return finished or await _do_large(task, body, context, deadline)
    except Invalid as invalid:
        raise RequestValidationError(
            [{"loc": (fault.field,), "msg": fault.detail, "type": fault.code} for fault in invalid.faults]
        ) from None


def _do_small(task: Task, body: bytes) -> Finished | None:
    """Do the task if the body is small, else return None. Raise TooLarge if it has too many values."""
    values = count_values(body)
    if values > task.most_values:
        raise TooLarge(task.too_many)
    return task(body) if len(body) <= SMALL_BYTES and values <= SMALL_VALUES else None


def count_values(body: bytes) -> int:
    """Return how many commas, colons and opening brackets a body has, an upper bound of its values."""
    return sum(
        body.count(character, start, start + SLICE)
        for start in range(0, len(body), SLICE)
        for character in b",:[{"
    )


async def _do_large(task: Task, body: bytes, context: RequestContext, deadline: float) -> Finished:
    child = Child("app.api.json_tasks:work", limit_s=PROCESS_S, limit_mib=PROCESS_MIB)
    try:
        with closing(child):
            async with asyncio.timeout_at(deadline):
                output = await _PROCESSES.run(lambda: child.run(pack(task, body)), context)
    except (TimeoutError, ChildTimeout):
        raise DeadlinePassed("the body was not evaluated within the time limit of the request") from None
    except ChildTooLarge:
        raise TooLarge(f"parsing the body takes more than {PROCESS_MIB} MiB of memory") from None
    return unpack(output)
