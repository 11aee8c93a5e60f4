"""uvicorn's connection with the limits that it lacks: on heads, on framing, on clients that do not read."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from uuid import uuid4

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.responses import Response
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import BodyTimeout, LeukoError, MalformedRequest

MAX_FRAMING = 2**16  # bytes of a request besides its body: head, chunk sizes, trailers
MAX_HEADERS = 100  # of a request: each takes about 150 bytes beside its own, and time
MAX_WAITING = 16  # requests that a client may pipeline before the first is answered
PIECE = 2**14  # bytes that are parsed at once: limits are checked, and parsing can stop, only between pieces
LEAST_RATE = 4096  # bytes a second that a client must read of its responses, on average over stall_s
TICKS = 10  # how often in stall_s it is looked at what has left
LEFT_S = 0.1  # how often it is looked at whether a client that sends no more has left
LINGER_S = 2.0  # time between a refusal and closing: closing earlier, on unread bytes, could lose the refusal


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits on connections, and what to do with bytes that never become a request.

    connections: number above which a new connection is marked as surplus: work on it is refused.
    head_s: time for the head of a request, from the opening of its connection or its first byte.
    stall_s: time after which a client is disconnected that has read less than LEAST_RATE of its response.
    problem: error, request id → response. observe: called with the status of that response.
    """

    connections: int
    head_s: float
    stall_s: float
    problem: Callable[[LeukoError, str], Response]
    observe: Callable[[int], object]


class Flow(FlowControl):
    """uvicorn's control of reading and writing, but while reading is `held`, requests cannot resume it."""

    held = False

    def hold_reading(self) -> None:
        self.held = True
        self.pause_reading()

    def release_reading(self) -> None:
        self.held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class Joined:
    """The transport of one response: writes its head together with what follows in the same turn of the loop.

    Between two writes, the process may be killed. A proxy that has seen the head can then no longer send
    the request to another server.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, cycle: RequestResponseCycle
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._cycle = cycle
        self._head: bytes | None = None  # b"": it was written

    def write(self, data: bytes) -> None:
        begins = self._head is None and self._cycle.response_started  # else it is "100 Continue"
        if begins and self._cycle.scope["method"] != "HEAD":
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(self._take() + data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._head and not self._transport.is_closing():
            self._transport.write(self._take())

    def _take(self) -> bytes:
        head = self._head or b""
        if head:
            self._head = b""
        return head


def parser_of(connection: Connection) -> HttpRequestParser:
    """Return a parser with uvicorn's leniency: bytes after a request that closes are ignored."""
    parser = HttpRequestParser(connection)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


class Connection(HttpToolsProtocol):
    """One connection. The names without underscore override uvicorn's protocol and its parser callbacks."""

    flow: Flow

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._left_timer: asyncio.TimerHandle | None = None
        self._ended = False  # the client sends no more, but may read
        self._unread_bytes = 0  # of responses, when enough had last left
        self._stalled_ticks = 0  # since then
        self._unparsed = b""  # read already, but behind a request that waits
        self._piece_bytes = 0  # of what is being parsed
        self._framing_bytes = 0  # of the current request, besides its body
        self._body_bytes = 0  # of the current request
        self._in_head = False
        self._offered = False  # the current request offers to upgrade
        self._repeating = False  # its head, to a parser that has not seen the offer
        self._discarding = False  # read further bytes, but ignore them
        self._lost = False
        self._active: RequestResponseCycle | None = None  # being answered; `cycle` is the last received

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport)
        if len(self.connections) > self._limits.connections:
            self.app_state = {**self.app_state, "surplus": True}
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        for timer in (self._head_timer, self._stall_timer, self._left_timer):
            if timer is not None:
                timer.cancel()
        if self._active is not None:  # of several pipelined requests, uvicorn notifies only the last
            self._active.disconnected = True
            self._active.message_event.set()
        self._unparsed = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._unparsed += data
        if not self.flow.held:
            self._parse()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Close the connection, or keep it until the requests that were received whole are answered.

        A client that has left, and one that only sends no more, both end like this. So it is sent what
        clients ignore: the machine of one that has left rejects that, which cancels its work as ever.
        HTTP/1.0 has nothing of this kind.
        """
        active = self._active
        if (
            self._ended
            or self._discarding
            or self._in_head
            or self.transport.is_closing()
            or active is None
            or active.response_complete
            or self.cycle.more_body
            or self.cycle.scope["http_version"] != "1.1"
        ):
            self._close()
            return False
        self._ended = True
        self.flow.hold_reading()
        self.cycle.keep_alive = False
        if not active.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._left_timer = self.loop.call_later(LEFT_S, self._on_left_timer)
        return True

    def on_message_begin(self) -> None:
        if self._repeating:
            return
        super().on_message_begin()
        self._framing_bytes = self._piece_bytes  # where in the piece it begins is not known
        self._body_bytes = 0
        self._in_head = True
        if self._head_timer is None:
            self._start_head_timer()

    def on_url(self, url: bytes) -> None:
        if not self._repeating:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Ignore trailers: a proxy may not have checked them, and they could hold a key or a host.
        if not self._in_head:
            return
        if len(self.headers) >= MAX_HEADERS:
            raise MalformedRequest("The request has too many headers.")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._repeating:
            return
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._check_head()
        super().on_headers_complete()
        self._offered = self.parser.should_upgrade()

    def on_message_complete(self) -> None:
        if not self._offered:  # else the parser has not looked for a body
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body)
        self._body_bytes += len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._start_stall_timer()
        elif self.flow.held and not self.pipeline and not self._ended:
            self._continue()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_stall_timer()

    def resume_writing(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._start_stall_timer()

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedRequest(msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Do nothing, where uvicorn logs: a client could fill the log."""

    def _ignore_offer(self, rest: bytes) -> None:
        """Read on as if the request had not offered to upgrade, as RFC 9110, 7.8 allows.

        The parser ends a message at the head that offers. Another one is told how the body is framed.
        """
        self._offered = False
        self.parser = parser_of(self)
        framing = (b"content-length", b"transfer-encoding")
        lines = [name + b": " + value for name, value in self.headers if name in framing]
        self._repeating = True
        self.parser.feed_data(b"\r\n".join([b"POST / HTTP/1.1", *lines, b"", b""]))
        self._repeating = False
        if rest:
            self._feed(rest)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        cycle.transport = cast(asyncio.Transport, Joined(self.transport, self.loop, cycle))
        super()._start_asgi_task(cycle, partial(self._answer, cycle, app))

    async def _answer(self, cycle: RequestResponseCycle, app: Any, *arguments: Any) -> None:
        try:
            await app(*arguments)
        except asyncio.CancelledError:  # by uvicorn, at the end; it would log a traceback
            cycle.disconnected = True
            self.transport.abort()

    def _parse(self) -> None:
        """Parse what was read, up to the piece in which a request must wait for others.

        What follows stays unparsed, and no more is read: parsed heads take several times their bytes.
        """
        data, self._unparsed = self._unparsed, b""
        for start in range(0, len(data), PIECE):
            if self.pipeline:
                self._unparsed = data[start:]
                self._hold()
                return
            piece = data[start : start + PIECE]
            self._piece_bytes = len(piece)
            self._framing_bytes += len(piece)
            self._feed(piece)
            if self._discarding:
                return
            if self._framing_bytes > MAX_FRAMING + self._body_bytes:
                self._refuse(MalformedRequest("The head, the chunk framing or the trailers are too long."))
                return
        if self._head_timer is None and self.cycle is not None and self.cycle.response_complete:
            # Empty lines start no request, but uvicorn stops its keep-alive timer at any byte.
            self._start_head_timer()

    def _feed(self, piece: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(piece)
        except HttpParserUpgrade as offer:
            self._ignore_offer(piece[offer.args[0] :])
        except HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _hold(self) -> None:
        self.flow.hold_reading()
        if self._head_timer is not None:  # the rest of the head may be there already
            self._head_timer.cancel()
            self._head_timer = None

    def _continue(self) -> None:
        self.flow.release_reading()
        if self._in_head:
            self._start_head_timer()
        self._parse()

    def _check_head(self) -> None:
        """Raise MalformedRequest for a head that the parser accepts but other software may read differently.

        uvicorn catches what is raised in a parser callback and calls `send_400_response`.
        """
        version = self.parser.get_http_version()
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        size = len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)
        if (
            version not in ("1.0", "1.1")
            or (codings and (version == "1.0" or codings != [b"chunked"]))
            or self.parser.get_method() == b"CONNECT"
            or size > MAX_FRAMING
            or len(self.pipeline) >= MAX_WAITING
        ):
            raise MalformedRequest("The request is not supported.")

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_s, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(BodyTimeout(f"The head was not complete within {self._limits.head_s:g} s."))
        else:
            self._close()

    def _on_left_timer(self) -> None:
        if self.transport.is_closing():
            return
        connection = self.transport.get_extra_info("socket")
        if connection is not None and connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self._left_timer = self.loop.call_later(LEFT_S, self._on_left_timer)

    def _start_stall_timer(self) -> None:
        if self._stall_timer is None and not self._lost:  # timers of uvicorn and `_refuse` may end later
            self._renew_stall_timer()

    def _renew_stall_timer(self) -> None:
        self._unread_bytes, self._stalled_ticks = self._count_unread(), 0
        self._stall_timer = self.loop.call_later(self._limits.stall_s / TICKS, self._on_stall_tick)

    def _on_stall_tick(self) -> None:
        self._stalled_ticks += 1
        if self._unread_bytes - self._count_unread() >= LEAST_RATE * self._limits.stall_s:
            self._renew_stall_timer()
        elif self._stalled_ticks < TICKS:
            self._stall_timer = self.loop.call_later(self._limits.stall_s / TICKS, self._on_stall_tick)
        else:
            self.transport.abort()

    def _count_unread(self) -> int:
        """Return how many bytes of responses the client's machine has not accepted.

        Those in the transport alone do not do: the kernel takes more of them only when a third of its own
        buffer, which may be megabytes, is free again.
        """
        unread = self.transport.get_write_buffer_size()
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            with suppress(OSError):  # the connection has just been lost
                queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
                unread += int.from_bytes(queued, sys.byteorder)
        return unread

    def _close(self) -> None:
        self.transport.close()
        self._start_stall_timer()

    def _refuse(self, error: LeukoError) -> None:
        """Respond to bytes that are not a valid request, discard all further ones, and close."""
        if self.transport.is_closing():
            return
        self._discarding = True
        response = self._limits.problem(error, uuid4().hex)
        self._limits.observe(response.status_code)
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()  # the invalid bytes are in the body of this request, the last received
        last = self.pipeline[0][0] if self.pipeline else self._active
        if last is not None and not last.response_complete:
            if not last.more_body:  # let requests before the invalid bytes be answered, then close
                last.keep_alive = False
                return
            last.disconnected = True
            last.message_event.set()
        self.flow.resume_reading()
        if last is None or last.response_complete or not last.response_started:
            self._write(response)
        self.loop.call_later(LINGER_S, self._close)

    def _write(self, response: Response) -> None:
        head = [STATUS_LINE[response.status_code]]
        for name, value in [*response.raw_headers, (b"connection", b"close")]:
            head += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join([*head, b"\r\n", bytes(response.body)]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
