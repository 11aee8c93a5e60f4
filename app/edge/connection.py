"""uvicorn's connection, with the bounds that it lacks: on heads, on framing, on clients that do not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import BodyTimeout, LeukoError, MalformedRequest

MAX_FRAMING = 2**16  # bytes of a request besides its body: head, chunk sizes, trailers
MAX_WAITING = 16  # requests that a client may send on a connection before the first is answered
LINGER_S = 2.0  # how long to read on after a refusal, lest closing on unread bytes loses it


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
        self._heading = False  # within a head
        self._deaf = False  # what still comes is read, and thrown away
        self._answering: RequestResponseCycle | None = None  # `cycle` is the last that came

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.connections:
            self.app_state = {**self.app_state, "crowded": True}
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._stall):
            if timer is not None:
                timer.cancel()
        if self._answering is not None:  # uvicorn tells only the last of several requests
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._framing += len(data)
        super().data_received(data)
        if self._deaf:
            return
        if self._framing > MAX_FRAMING + self._body:
            self._refuse(MalformedRequest("The head, or what frames the body, is too long."))
        elif self._head is None and self.cycle is not None and self.cycle.response_complete:
            self._await_head()  # empty lines begin no request, but end the wait for one

    def eof_received(self) -> None:
        self._close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._framing = self._body = 0
        self._heading = True
        if self._head is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        # What follows a body is no header: no proxy has looked whether it holds a key, or a host.
        if self._heading:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._heading = False
        if self._head is not None:
            self._head.cancel()
            self._head = None
        self._check_head()
        super().on_headers_complete()
        if self.parser.should_upgrade():  # its parser stops there
            self.cycle.keep_alive = False

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

    def _unsupported_upgrade_warning(self) -> None:
        self._deaf = True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _check_head(self) -> None:
        """What the parser lets pass, and other software may understand in another way; raising ends it."""
        version = self.parser.get_http_version()
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if (
            version not in ("1.0", "1.1")
            or (codings and (version == "1.0" or codings != [b"chunked"]))
            or self.parser.get_method() == b"CONNECT"
            or size > MAX_FRAMING
            or len(self.pipeline) >= MAX_WAITING
        ):
            raise MalformedRequest("Not a request that is served.")

    def _await_head(self) -> None:
        self._head = self.loop.call_later(self._bounds.head_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head = None
        if self._heading:
            self._refuse(BodyTimeout(f"The head was not complete within {self._bounds.head_s:g} s."))
        else:
            self._close()

    def _await_reader(self) -> None:
        if self._stall is None:
            self._stall = self.loop.call_later(self._bounds.stall_s, self.transport.abort)

    def _close(self) -> None:
        self.transport.close()
        self._await_reader()

    def _refuse(self, error: LeukoError) -> None:
        """Answers bytes that are no request, and no others on this connection."""
        if self.transport.is_closing():
            return
        self._deaf = True
        answer = self._bounds.problem(error, uuid4().hex)
        self._bounds.observe(answer.status_code)
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()  # the bytes broke the body of a request that waits behind others
        last = self.pipeline[0][0] if self.pipeline else self._answering
        if last is not None and not last.response_complete:
            if not last.more_body:  # the bytes came behind requests that are still being answered
                last.keep_alive = False
                return
            last.disconnected = True
            last.message_event.set()
        self.flow.resume_reading()
        if last is None or last.response_complete or not last.response_started:
            self._write(answer)
        self.loop.call_later(LINGER_S, self._close)

    def _write(self, answer: Response) -> None:
        head = [STATUS_LINE[answer.status_code]]
        for name, value in [*answer.raw_headers, (b"connection", b"close")]:
            head += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join([*head, b"\r\n", bytes(answer.body)]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
