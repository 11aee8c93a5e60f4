"""`Connection` on a fake transport and a fake clock."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from app.api import problem_responses
from app.edge.admission import Admission, AdmissionLimits, AdmissionRules
from app.edge.connection import (
    LEAST_RATE,
    LEFT_S,
    LINGER_S,
    MAX_FRAMING,
    MAX_HEADERS,
    MAX_WAITING,
    PIECE,
    TICKS,
    Connection,
    ConnectionLimits,
)
from app.edge.routing import Matched
from tests.safety.raw import chunk, head, statuses

HEAD_S, STALL_S = 10.0, 30.0
GET = head("GET /healthz HTTP/1.1")
CHUNKED = head("POST /predict HTTP/1.1", "Transfer-Encoding: chunked")
BROKEN = CHUNKED + b"1\r\nxyz"


class Timer:
    def __init__(self, due: float, call: Callable[[], object]) -> None:
        self.due = due
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Task:
    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self.work = work

    def add_done_callback(self, _: Callable[[Any], object]) -> None:
        pass


class Loop:
    """A fake event loop: time passes in `let_pass`, timer by timer; tasks run in `Client.answer`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.tasks: list[Task] = []

    def call_later(self, delay: float, call: Callable[[], object]) -> Timer:
        timer = Timer(self.now + delay, call)
        self.timers.append(timer)
        return timer

    def call_soon(self, call: Callable[[], object]) -> Timer:
        return self.call_later(0, call)

    def create_task(self, work: Coroutine[Any, Any, None]) -> Task:
        task = Task(work)
        self.tasks.append(task)
        return task

    def let_pass(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.due <= end]:
            first = min(due, key=lambda timer: timer.due)
            self.timers.remove(first)
            self.now = first.due
            if not first.cancelled:
                first.call()
        self.now = end


class Transport:
    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.unread = 0  # bytes that the client has not taken
        self.closing = False
        self.aborted = False
        self.ended = False
        self.paused = False

    def get_extra_info(self, _: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        assert not self.closing
        assert not self.ended
        self.writes.append(data)

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)

    def get_write_buffer_size(self) -> int:
        return self.unread

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("ok")(scope, receive, send)


class Client:
    """One connection to a server; `answer` runs the application for its requests."""

    def __init__(self, app: ASGIApp = ok, state: ServerState | None = None) -> None:
        self.loop = Loop()
        self.transport = Transport()
        self.observed: list[int] = []
        limits = ConnectionLimits(2, HEAD_S, STALL_S, problem_responses.render, self.observed.append)
        config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, timeout_keep_alive=65)
        self.connection = Connection(config, state or ServerState(), {}, self.loop, limits=limits)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.data_received(piece)

    def answer(self) -> None:
        """Run all tasks, also those started meanwhile."""
        while self.loop.tasks:
            asyncio.run(self.loop.tasks.pop(0).work)
            self.loop.let_pass(0)

    def forget(self) -> None:
        """Close all tasks without running them."""
        for task in self.loop.tasks:
            task.work.close()

    @property
    def statuses(self) -> list[int]:
        return statuses(self.transport.sent)

    @property
    def open(self) -> bool:
        return not self.transport.closing


# Responses


def test_a_head_is_written_together_with_the_body_that_follows() -> None:
    client = Client()
    client.send(GET, GET)
    client.answer()
    first, second = client.transport.writes
    assert first == second
    assert first.endswith(b"\r\n\r\nok")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_head_without_a_body_is_written_as_well(method: str) -> None:
    async def begin(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        if method == "HEAD":
            await send({"type": "http.response.body", "body": b""})
        else:
            client.loop.let_pass(0)
            [alone] = client.transport.writes
            assert alone.endswith(b"\r\n\r\n")
            await send({"type": "http.response.body", "body": b"ok"})

    client = Client(begin)
    client.send(head(f"{method} /healthz HTTP/1.1"))
    client.answer()
    assert client.statuses == [200]
    assert client.transport.sent.endswith(b"\r\n\r\n" if method == "HEAD" else b"\r\n\r\nok")


@pytest.mark.parametrize("started", [False, True])
def test_a_response_that_is_cancelled_aborts_its_connection_and_logs_nothing(
    caplog: pytest.LogCaptureFixture, started: bool
) -> None:
    caplog.set_level(logging.WARNING)

    async def cancelled(_: Scope, __: Receive, send: Send) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise asyncio.CancelledError

    client = Client(cancelled)
    client.send(GET)
    client.answer()
    assert client.transport.aborted
    assert b"500" not in client.transport.sent
    assert caplog.records == []


# Heads


def test_a_connection_without_a_head_is_closed_without_a_response() -> None:
    client = Client()
    client.loop.let_pass(HEAD_S - 1)
    assert client.open
    client.loop.let_pass(1)
    assert (client.open, client.transport.sent, client.observed) == (False, b"", [])


@pytest.mark.parametrize("pieces", [[b"G"], [GET[:-1]], [GET[:5], GET[5:-2]], [b"\r\n", b"GET"]])
def test_a_head_that_does_not_end_in_time_is_408(pieces: list[bytes]) -> None:
    client = Client()
    client.send(*pieces)
    client.loop.let_pass(HEAD_S)
    assert (client.statuses, client.observed, client.transport.ended) == ([408], [408], True)
    assert b"connection: close" in client.transport.sent
    client.send(GET)
    client.loop.let_pass(LINGER_S)
    assert (client.statuses, client.open) == ([408], False)


def test_further_bytes_of_a_head_do_not_extend_its_time() -> None:
    client = Client()
    for byte in range(int(HEAD_S)):
        client.send(GET[byte : byte + 1])
        client.loop.let_pass(1)
    assert client.statuses == [408]


def test_a_complete_head_stops_its_timer_and_each_head_has_its_own() -> None:
    client = Client()
    for _ in range(3):
        client.loop.let_pass(HEAD_S - 1)
        client.send(GET[:9], GET[9:])
        client.answer()
    assert (client.statuses, client.open) == ([200] * 3, True)
    client.send(b"G")
    client.loop.let_pass(HEAD_S)
    assert client.statuses == [200, 200, 200, 408]


def test_empty_lines_do_not_keep_a_connection() -> None:
    client = Client()
    client.send(GET)
    client.answer()
    for _ in range(int(HEAD_S)):
        client.send(b"\r\n")
        client.loop.let_pass(1)
    assert (client.statuses, client.open) == ([200], False)


def test_an_idle_connection_is_kept_as_long_as_uvicorn_keeps_it() -> None:
    client = Client()
    client.send(GET)
    client.answer()
    client.loop.let_pass(64)
    assert client.open
    client.loop.let_pass(1)
    assert not client.open


# Framing of bodies


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET /", b"x" * 1000),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"a: " + b"b" * 1000 + b"\r\n"),
        (CHUNKED + b"1;", b"x" * 1000),
        (CHUNKED + b"0\r\n", b"a: b\r\n" * 200),
        (CHUNKED, b"1\r\nx\r\n" * 200),
    ],
    ids=["target", "headers", "chunk extension", "trailers", "small chunks"],
)
def test_bytes_besides_the_body_are_limited(start: bytes, more: bytes) -> None:
    client = Client()
    client.send(start, *[more] * 40)
    assert client.statuses == []
    client.send(*[more] * 60)
    client.forget()
    assert (client.statuses, client.observed) == ([400], [400])


def test_a_head_that_arrives_at_once_is_limited_as_well() -> None:
    client = Client()
    client.send(head("GET / HTTP/1.1", "a: " + "b" * MAX_FRAMING))
    assert client.statuses == [400]


@pytest.mark.parametrize(
    ("number", "status"), [(MAX_HEADERS, 200), (MAX_HEADERS + 1, 400), (12_000, 400), (48_000, 400)]
)
def test_headers_are_limited_in_number(number: int, status: int) -> None:
    client = Client()
    client.send(head("GET / HTTP/1.1", *["a:"] * (number - 1)))
    client.answer()
    assert client.statuses == [status]


def test_trailers_are_not_counted_as_headers() -> None:
    client = Client()
    client.send(CHUNKED + b"0\r\n" + b"a:\r\n" * 2 * MAX_HEADERS + b"\r\n")
    client.answer()
    assert client.statuses == [200]


@pytest.mark.parametrize(("spare", "status"), [(0, 200), (1, 400)])
def test_the_separators_of_headers_count_as_well(spare: int, status: int) -> None:
    headers = ["Host: localhost", *["a: "] * (MAX_HEADERS - 2)]
    length = MAX_FRAMING - len("/a: \r\n") - sum(len(header) + 2 for header in headers)
    client = Client()
    client.send(head("GET / HTTP/1.1", *headers[1:], "a: " + "b" * (length + spare)))
    client.answer()
    assert client.statuses == [status]


@pytest.mark.parametrize(
    "before",
    [b"", GET, CHUNKED + chunk(b"x" * 10_000) + b"0\r\n\r\n"],
    ids=["first", "after a head", "after a body"],
)
@pytest.mark.parametrize(
    "framing",
    [
        b"1;" + b"a" * (MAX_FRAMING + PIECE) + b"\r\nx\r\n0\r\n",
        (b"1;" + b"a" * (MAX_FRAMING // 2) + b"\r\nx\r\n") * 3 + b"0\r\n",
        b"1\r\nx\r\n" * (MAX_FRAMING // 3) + b"0\r\n",
        b"0\r\n" + b"a: b\r\n" * (MAX_FRAMING // 3),
    ],
    ids=["an extension", "extensions", "small chunks", "trailers"],
)
def test_framing_that_arrives_with_its_head_is_limited_as_well(before: bytes, framing: bytes) -> None:
    client = Client()
    client.send(before)
    client.answer()
    client.transport.writes.clear()
    client.send(CHUNKED + framing + b"\r\n")
    client.answer()
    assert client.statuses == [400]


def test_the_connection_does_not_limit_bodies() -> None:
    client = Client()
    client.send(CHUNKED, *[b"3e8\r\n" + b"x" * 1000 + b"\r\n"] * 1000, b"0\r\n\r\n")
    client.answer()
    assert (client.statuses, client.open) == ([200], True)


def test_trailers_are_not_added_to_the_headers() -> None:
    received: list[list[tuple[bytes, bytes]]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.append(scope["headers"])
        await ok(scope, receive, send)

    client = Client(app)
    client.send(CHUNKED + b"0\r\nX-API-Key: leuko\r\nHost: y\r\n\r\n")
    client.answer()
    assert received == [[(b"host", b"localhost"), (b"transfer-encoding", b"chunked")]]


OFFERS = {
    "HTTP/2": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
    "a web socket": ("Connection: keep-alive, Upgrade", "Upgrade: websocket"),
    "TLS": ("Upgrade: TLS/1.0, HTTP/1.1", "Connection: upgrade"),
}
FRAMINGS = {
    "with a length": (("Content-Length: 11",), b"0123456789\n"),
    "in chunks": (
        ("Transfer-Encoding: chunked",),
        b"4\r\n0123\r\n7;x=y\r\n456789\n\r\n0\r\nX: trailer\r\n\r\n",
    ),
    "empty": (("Content-Length: 0",), b""),
    "none": ((), b""),
}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("size", [1, 17, 10_000])
def test_an_offer_to_upgrade_is_ignored_and_the_body_is_read(
    caplog: pytest.LogCaptureFixture, offer: str, framing: str, method: str, size: int
) -> None:
    caplog.set_level(logging.WARNING)
    received: list[tuple[str, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        received.append((scope["method"], body))
        await ok(scope, receive, send)

    lines, body = FRAMINGS[framing]
    sent = head(f"{method} / HTTP/1.1", *lines, *OFFERS[offer]) + body + GET
    client = Client(app)
    client.send(*[sent[start : start + size] for start in range(0, len(sent), size)])
    client.answer()
    whole = b"0123456789\n" if body else b""
    assert received == [(method, whole), ("GET", b"")]
    assert (client.statuses, client.open) == ([200, 200], True)
    assert caplog.records == []  # otherwise a client could fill the log


# Pipelined requests


def test_pipelined_requests_are_answered_in_order() -> None:
    client = Client()
    client.send(GET * (MAX_WAITING + 1))
    client.answer()
    assert (client.statuses, client.open) == ([200] * (MAX_WAITING + 1), True)


def test_too_many_pipelined_requests_close_the_connection_after_the_first_ones_are_answered() -> None:
    client = Client()
    client.send(GET * 1000)
    assert len(client.connection.pipeline) == MAX_WAITING
    client.answer()
    assert (client.statuses, client.open) == ([200] * (MAX_WAITING + 1), False)


LONG = head("GET / HTTP/1.1", *["a: " + "b" * 700] * 85)  # nearly MAX_FRAMING


def count_waiting(client: Client) -> int:
    """In bytes of heads that were parsed."""
    return sum(
        len(name) + len(value)
        for cycle, _ in client.connection.pipeline
        for name, value in cycle.scope["headers"]
    )


@pytest.mark.parametrize(
    ("request_", "number"),
    [(LONG, 30), (head("GET / HTTP/1.1", "a: " + "b" * 10_000), 30), (CHUNKED + b"0\r\n\r\n", MAX_WAITING)],
)
def test_what_follows_a_waiting_request_is_not_parsed_before_it_is_answered(
    request_: bytes, number: int
) -> None:
    client = Client()
    client.send(LONG, request_ * number)
    assert count_waiting(client) <= MAX_FRAMING + PIECE
    client.answer()
    assert (client.statuses, client.open) == ([200] * (1 + number), True)


def test_while_requests_wait_nothing_more_is_read_even_if_the_application_receives() -> None:
    paused: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        paused.append(client.transport.paused)
        await ok(scope, receive, send)

    client = Client(app)
    client.send(LONG * 4)
    client.answer()
    assert (paused, client.transport.paused) == ([True, True, False, False], False)
    assert client.statuses == [200] * 4


def test_what_arrives_while_requests_wait_keeps_its_order() -> None:
    paths: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        await ok(scope, receive, send)

    client = Client(app)
    sent = b"".join(head(f"GET /{number} HTTP/1.1", "a: " + "b" * 3000) for number in range(40))
    client.send(*[sent[start : start + 50_000] for start in range(0, len(sent), 50_000)])
    client.answer()
    assert paths == [f"/{number}" for number in range(40)]


def test_a_head_behind_a_waiting_request_has_its_time_from_when_the_last_one_starts() -> None:
    client = Client()
    client.send(GET * 2 + LONG[:-1])
    client.loop.let_pass(HEAD_S)
    assert client.statuses == []
    client.answer()
    assert client.statuses == [200] * 2
    client.loop.let_pass(HEAD_S)
    assert (client.statuses, client.transport.ended) == ([200, 200, 408], True)


def test_invalid_bytes_behind_waiting_requests_close_after_all_before_are_answered() -> None:
    client = Client()
    client.send(LONG * 4 + b"\0" * 2 * PIECE)
    assert client.observed == []
    client.answer()
    assert (client.statuses, client.open, client.observed) == ([200] * 4, False, [400])


def test_the_bytes_behind_a_request_that_closes_are_dropped() -> None:
    client = Client()
    client.send(LONG + head("GET / HTTP/1.1", "Connection: close") + LONG * 3)
    client.answer()
    assert (client.statuses, client.open) == ([200] * 2, False)


@pytest.mark.parametrize("bad", [b"\0", BROKEN, b"GET / HTTP/3.0\r\n\r\n"])
@pytest.mark.parametrize("before", [1, 3])
def test_requests_before_invalid_bytes_are_answered(bad: bytes, before: int) -> None:
    client = Client()
    client.send(GET * before, bad)
    assert client.statuses == []
    client.answer()
    assert (client.statuses, client.open, client.observed) == ([200] * before, False, [400])


def test_a_request_before_a_late_head_is_answered() -> None:
    client = Client()
    client.send(GET, b"G")
    client.loop.let_pass(HEAD_S)
    client.answer()
    assert (client.statuses, client.open) == ([200], False)


def test_an_invalid_body_is_400_and_its_request_is_marked_disconnected() -> None:
    client = Client()
    client.send(BROKEN)
    assert client.statuses == [400]
    assert client.connection.cycle.disconnected
    client.answer()
    assert client.statuses == [400]
    client.loop.let_pass(LINGER_S)
    assert not client.open


def test_a_body_that_becomes_invalid_after_its_response_has_started_gets_no_second_one() -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no", "more_body": True})
        client.send(BROKEN[len(CHUNKED) :])
        await send({"type": "http.response.body"})

    client = Client(app)
    client.send(CHUNKED)
    client.answer()
    assert (client.statuses, client.transport.sent[-2:], client.open) == ([413], b"no", True)
    client.loop.let_pass(LINGER_S)
    assert not client.open


def test_the_request_that_is_being_answered_is_notified_of_a_disconnect() -> None:
    messages: list[str] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        client.connection.connection_lost(None)
        messages.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 200})

    client = Client(app)
    client.send(GET * 3)
    client.answer()
    assert (messages, client.transport.sent) == (["http.disconnect"], b"")


# Clients that send no more


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "number"), [(GET, 1), (GET * 3, 3), (CHUNKED + chunk(b"x") + b"0\r\n\r\n", 1)]
)
def test_requests_that_were_received_whole_before_the_end_are_answered(sent: bytes, number: int) -> None:
    client = Client()
    client.send(sent)
    assert client.connection.eof_received()
    client.loop.let_pass(STALL_S)
    assert (client.transport.sent, client.transport.paused, client.open) == (CONTINUE, True, True)
    client.answer()
    assert (client.statuses, client.open) == ([100] + [200] * number, False)
    assert client.transport.sent.count(b"connection: close") == 1
    client.transport.unread = 1
    client.loop.let_pass(STALL_S)
    assert client.transport.aborted


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        GET[:-1],
        GET + GET[:-1],
        GET + CHUNKED,
        CHUNKED + chunk(b"x") + b"0\r\n",
        b"\0",
        head("GET / HTTP/1.0"),
    ],
)
def test_anything_else_is_closed_at_the_end(sent: bytes) -> None:
    client = Client()
    client.send(sent)
    assert not client.connection.eof_received()
    client.forget()
    assert (client.open, CONTINUE in client.transport.sent) == (False, False)


def test_a_response_that_has_begun_is_completed_after_the_end_and_not_interrupted() -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        assert client.connection.eof_received()
        await send({"type": "http.response.body", "body": b"ok"})

    client = Client(app)
    client.send(GET)
    client.answer()
    assert client.transport.sent.endswith(b"\r\n\r\nok")
    assert (client.statuses, client.open) == ([200], False)


def test_a_client_that_left_is_noticed_by_what_its_machine_rejects() -> None:
    class Socket:
        error = 0

        def getsockopt(self, *_: int) -> int:
            return self.error

        def fileno(self) -> int:
            return -1

    client, socket = Client(), Socket()
    client.transport.get_extra_info = lambda _: socket  # type: ignore[method-assign, assignment]
    client.send(GET)
    client.connection.eof_received()
    client.loop.let_pass(10)
    assert client.open
    socket.error = errno.EPIPE
    client.loop.let_pass(LEFT_S)
    assert client.transport.aborted
    client.forget()


# Clients that do not read


def test_a_client_that_reads_nothing_of_its_response_is_disconnected() -> None:
    client = Client()
    client.connection.pause_writing()
    client.loop.let_pass(STALL_S - 1)
    assert not client.transport.aborted
    client.loop.let_pass(1)
    assert client.transport.aborted


def test_a_client_that_continues_reading_is_not_disconnected() -> None:
    client = Client()
    for _ in range(3):
        client.connection.pause_writing()
        client.loop.let_pass(STALL_S - 1)
        client.connection.resume_writing()
    client.loop.let_pass(STALL_S)
    assert not client.transport.aborted


ENOUGH = int(LEAST_RATE * STALL_S)


def read_steadily(client: Client, *, size: int, every_s: float) -> None:
    """Until all is read or the connection is lost."""
    while client.transport.unread and not client.transport.aborted:
        client.loop.let_pass(every_s)
        client.transport.unread = max(client.transport.unread - size, 0)


@pytest.mark.parametrize("end", [lambda _: None, lambda client: client.connection.eof_received()])
@pytest.mark.parametrize("pieces", [1, 2, 9])
def test_a_slow_but_steady_reader_gets_all_of_a_long_response(
    end: Callable[[Client], None], pieces: int
) -> None:
    client = Client()
    client.transport.unread = 20 * ENOUGH
    client.connection.pause_writing()
    end(client)
    read_steadily(client, size=-(-ENOUGH // pieces), every_s=(STALL_S - 1) / pieces)
    assert not client.transport.aborted


@pytest.mark.parametrize(("size", "every_s"), [(1, STALL_S - 1), (ENOUGH // 20, STALL_S / 10), (0, 1)])
def test_a_reader_below_the_least_rate_is_disconnected_within_one_stall_time(
    size: int, every_s: float
) -> None:
    client = Client()
    client.transport.unread = 20 * ENOUGH
    client.connection.pause_writing()
    read_steadily(client, size=size, every_s=every_s)
    assert client.transport.aborted
    assert client.transport.unread > 19 * ENOUGH


def test_a_reader_that_stops_is_disconnected_one_stall_time_after_it_read_enough() -> None:
    client = Client()
    client.transport.unread = 20 * ENOUGH
    client.connection.pause_writing()
    client.loop.let_pass(STALL_S / TICKS)
    client.transport.unread -= ENOUGH
    client.loop.let_pass(STALL_S)
    assert not client.transport.aborted
    client.loop.let_pass(STALL_S / TICKS)
    assert client.transport.aborted


def end_with_an_answer(client: Client) -> None:
    client.send(head("GET / HTTP/1.1", "Connection: close"))
    client.answer()


def end_idle(client: Client) -> None:
    client.send(GET)
    client.answer()
    client.loop.let_pass(65)


def end_broken(client: Client) -> None:
    client.send(b"\0")
    client.loop.let_pass(LINGER_S)


def end_half(client: Client) -> None:
    client.send(GET)
    client.answer()
    client.connection.eof_received()


def end_silent(client: Client) -> None:
    client.loop.let_pass(HEAD_S)


@pytest.mark.parametrize("end", [end_with_an_answer, end_idle, end_broken, end_half, end_silent])
def test_a_closing_connection_is_aborted_if_its_responses_are_not_read(
    end: Callable[[Client], None],
) -> None:
    client = Client()
    end(client)
    assert (client.open, client.transport.aborted) == (False, False)
    client.loop.let_pass(STALL_S)
    assert client.transport.aborted


def test_a_lost_connection_has_no_timers() -> None:
    client = Client()
    client.connection.pause_writing()
    client.connection.connection_lost(None)
    client.loop.let_pass(1000)
    assert (client.transport.aborted, client.transport.sent) == (False, b"")


def end_refused(client: Client) -> None:
    client.send(b"\0")


def end_answered(client: Client) -> None:
    client.send(GET)
    client.answer()


@pytest.mark.parametrize(("end", "closes_after_s"), [(end_refused, LINGER_S), (end_answered, 65)])
def test_a_connection_that_is_reset_starts_no_timer_later(
    end: Callable[[Client], None], closes_after_s: float
) -> None:
    client = Client()
    end(client)
    client.connection.connection_lost(ConnectionResetError())
    client.loop.let_pass(closes_after_s)
    assert [timer for timer in client.loop.timers if not timer.cancelled] == []


# Number of connections


def test_surplus_connections_are_answered_503_and_closed_but_probes_are_answered() -> None:
    admission = Admission(
        ok,
        AdmissionLimits(max_body_bytes=100, max_reserved_bytes=100, max_requests=10, body_timeout_s=1),
        AdmissionRules(
            lambda scope: Matched("/predict", "/predict", scope["method"] == "POST"), lambda: True
        ),
        problem_responses.render,
        lambda *_: None,
    )
    state = ServerState()
    within_limit = [Client(admission, state), Client(admission, state)]
    for line, status in (("POST /predict HTTP/1.1", 503), ("GET /healthz HTTP/1.1", 200)):
        surplus = Client(admission, state)
        for client in (*within_limit, surplus):
            client.transport.writes.clear()
            client.send(head(line))
            client.answer()
        assert [client.statuses for client in (*within_limit, surplus)] == [[200], [200], [status]]
        assert [client.open for client in (*within_limit, surplus)] == [True, True, False]
        assert b"connection: close" in surplus.transport.sent.lower()
