"""uvicorn's connection, with the bounds that it lacks: on heads, on framing, on clients that do not read."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.errors import BodyTimeout, LeukoError, MalformedRequest

MAX_FRAMING = 2**16  # bytes of a request besides its body: head, chunk sizes, trailers
LINGER_S = 2.0  # how long to read on after a refusal, lest closing on unread bytes loses it
SPARE_FILES = 16  # for the answers that send surplus connections away, and for our own files


@dataclass(frozen=True)
class Bounds:
    connections: int  # with more, those that come are sent away
    head_s: float  # for the head of a request, from the opening of its connection or its first byte
    stall_s: float  # for a client that takes no byte of its answer
    problem: Callable[[LeukoError, str], Response]
    observe: Callable[[int], object]  # the status of what never became a request


class Connection(HttpToolsProtocol):
    def __init__(self, *arguments: Any, bounds: Bounds, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bounds = bounds
        self._head: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._framing = 0  # bytes besides the body
        self._body = 0
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.connections:
            self.app_state = {**self.app_state, "crowded": True}
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._stall):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._framing += len(data)
        super().data_received(data)
        if self._framing > MAX_FRAMING + self._body and not self._refused:
            self._refuse(MalformedRequest("The head, or what frames the body, is too long."))

    def eof_received(self) -> None:
        if self._refused:
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._framing = self._body = 0
        if self._head is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing -= len(body)
        self._body += len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await_reader()

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedRequest(msg))

    def _await_head(self) -> None:
        self._head = self.loop.call_later(self._bounds.head_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head = None
        if self._framing:
            self._refuse(BodyTimeout(f"The head was not complete within {self._bounds.head_s:g} s."))
        else:
            self.transport.close()

    def _await_reader(self) -> None:
        if self._stall is None:
            self._stall = self.loop.call_later(self._bounds.stall_s, self.transport.abort)

    def _refuse(self, error: LeukoError) -> None:
        """Answers bytes that are no request, and no others on this connection."""
        self._refused = True
        answer = self._bounds.problem(error, uuid4().hex)
        self._bounds.observe(answer.status_code)
        if self.cycle is not None and not self.cycle.response_complete:
            if not self.cycle.more_body:  # the bytes came behind a request that is still being answered
                self.cycle.keep_alive = False
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        self._write(answer)
        self.flow.resume_reading()
        self.loop.call_later(LINGER_S, self.transport.close)

    def _write(self, answer: Response) -> None:
        head = [STATUS_LINE[answer.status_code]]
        for name, value in [*answer.raw_headers, (b"connection", b"close")]:
            head += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join([*head, b"\r\n", bytes(answer.body)]))
        if self.transport.can_write_eof():
            self.transport.write_eof()


def most_connections(wanted: int) -> int:
    """As many as are wanted, if the limit of open files leaves them; 0 wants all that it leaves."""
    if sys.platform == "win32":
        return wanted or sys.maxsize
    import resource
    from pathlib import Path

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted or sys.maxsize
    open_now = sum(1 for _ in Path("/dev/fd").iterdir())
    left = max(1, limit - open_now - SPARE_FILES)
    return min(wanted or left, left)
