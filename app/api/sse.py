"""Long tasks as server-sent events: `progress` events, then one `result` or one `error`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine

from pydantic import BaseModel

from app.api.json_response import render
from app.errors import LeukoError
from app.inference.threads import LONG
from app.observability.request_context import RequestContext
from app.wire.problems import below, problem, unexpected

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5  # between progress events
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter turns off buffering in nginx


async def stream(
    work: Callable[[], Coroutine[None, None, BaseModel]],
    progress: Callable[[], BaseModel],
    context: RequestContext,
) -> AsyncIterator[bytes]:
    """Run `work` and yield its events; closing the iterator cancels it."""
    task = asyncio.create_task(work())
    try:
        yield _event("progress", progress())
        while not (await asyncio.wait([task], timeout=INTERVAL_S))[0]:
            yield _event("progress", progress())
        yield _event("progress", progress())
        yield await _last_event(task, context)
    finally:
        task.cancel()


async def _last_event(task: asyncio.Task[BaseModel], context: RequestContext) -> bytes:
    try:
        result = await task
        return await LONG.run(lambda: _event("result", result), context)
    except LeukoError as error:
        return _event("error", below(problem(error, context.request_id), context.prefix))
    except Exception:
        logger.exception("request %s failed", context.request_id)
        return _event("error", below(unexpected(context.request_id), context.prefix))


def _event(name: str, data: BaseModel) -> bytes:
    # JSON has no line ends, except those below.
    return render(data, b"event: " + name.encode() + b"\ndata: ", b"\n\n", _escape)


def _escape(json: bytes) -> bytes:
    """Escape what many clients take for line ends, though event streams have others."""
    for character in ("\x85", "\u2028", "\u2029"):
        json = json.replace(character.encode(), b"\\u%04x" % ord(character))
    return json
