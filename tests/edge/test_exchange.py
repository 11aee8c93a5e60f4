"""`Exchange` between a fake server and a fake application."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Scope

from app.edge.budget import Budget
from app.edge.exchange import CLIENT_GONE, PIECE, Exchange
from app.errors import BodyTimeout, MalformedRequest, QueueFull, TooLarge
from tests.running import PATIENCE_S

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CHUNKED = {"transfer-encoding": "chunked"}


class Client:
    """Send the given pieces of a body, then disconnect once `left` is set; collect the response in `sent`.

    whole: False if the body never ends.
    """

    def __init__(self, *body: bytes, headers: dict[str, str] | None = None, whole: bool = True) -> None:
        self.headers = headers or {}
        self.pending: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": not whole or number < len(body)}
            for number, piece in enumerate(body, 1)
        ]
        self.left = asyncio.Event()
        self.sent: list[Message] = []

    def exchange(self, **limits: Any) -> Exchange:
        defaults = {"max_body_bytes": 100, "body_timeout_s": 1000.0, "linger_s": 0.0}
        return Exchange(self.scope(), self.receive, self.send, **defaults | limits)

    def scope(self) -> Scope:
        headers = [(name.encode(), value.encode("latin-1")) for name, value in self.headers.items()]
        return {"type": "http", "method": "POST", "path": "/predict", "headers": headers}

    async def receive(self) -> Message:
        if self.pending:
            return self.pending.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def response_headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}


class SlowReader(Client):
    """Take one message of the response for each `taken.release()`."""

    def __init__(self, *body: bytes) -> None:
        super().__init__(*body)
        self.taken = asyncio.Semaphore(0)
        self.waiting = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.waiting.set()
        await self.taken.acquire()
        await super().send(message)


async def respond(exchange: Exchange, status: int = 200, body: bytes = b"ok") -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await exchange.send({"type": "http.response.start", "status": status, "headers": headers})
    await exchange.send({"type": "http.response.body", "body": body})


async def read(exchange: Exchange) -> bytes:
    body = bytearray()
    while True:
        message = await exchange.receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S):  # fail where a missing control would wait for ever
            await scenario()

    asyncio.run(main())


@pytest.mark.parametrize("value", ["a", "A-b_c.9", "x" * 128])
def test_a_safe_request_id_is_kept_and_echoed(value: str) -> None:
    async def scenario() -> None:
        client = Client(b"", headers={"x-request-id": value})
        exchange = client.exchange()
        await read(exchange)
        await respond(exchange)
        assert exchange.scope["state"]["context"].request_id == value
        assert client.response_headers()["x-request-id"] == value

    run(scenario)


def test_concurrent_requests_have_separate_contexts() -> None:
    async def scenario() -> None:
        contexts = [Client().exchange().context for _ in range(2)]
        assert contexts[0].stages is not contexts[1].stages
        assert contexts[0].findings is not contexts[1].findings

    run(scenario)


@pytest.mark.parametrize("value", ["", "x" * 129, "a b", "a\n", "a\r\nSet-Cookie: b", "../a", '"', "é"])
def test_an_unsafe_request_id_is_replaced(value: str) -> None:
    async def scenario() -> None:
        client = Client(b"", headers={"x-request-id": value})
        assert re.fullmatch("[0-9a-f]{32}", client.exchange().context.request_id)

    run(scenario)


def test_two_requests_without_ids_are_told_apart() -> None:
    async def scenario() -> None:
        assert Client().exchange().context.request_id != Client().exchange().context.request_id

    run(scenario)


def test_a_traceparent_is_passed_on_and_echoed() -> None:
    async def scenario() -> None:
        client = Client(b"", headers={"traceparent": TRACE})
        exchange = client.exchange()
        await respond(exchange)
        assert exchange.scope["state"]["context"].traceparent == TRACE
        assert client.response_headers()["traceparent"] == TRACE

    run(scenario)


@pytest.mark.parametrize(
    "value", ["01" + TRACE[2:], TRACE.upper(), TRACE + "\n", "00-" + "0" * 32 + TRACE[35:]]
)
def test_a_malformed_traceparent_is_dropped(value: str) -> None:
    async def scenario() -> None:
        client = Client(b"", headers={"traceparent": value})
        exchange = client.exchange()
        await respond(exchange)
        assert exchange.scope["state"]["context"].traceparent is None
        assert "traceparent" not in client.response_headers()

    run(scenario)


def test_responses_forbid_content_sniffing() -> None:
    async def scenario() -> None:
        client = Client(b"")
        await respond(client.exchange())
        assert client.response_headers()["x-content-type-options"] == "nosniff"

    run(scenario)


def test_headers_that_the_application_has_set_are_not_doubled() -> None:
    async def scenario() -> None:
        client = Client(b"")
        exchange = client.exchange()
        headers = [(b"x-request-id", b"other"), (b"x-content-type-options", b"nosniff")]
        await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
        names = [name for name, _ in client.sent[0]["headers"]]
        assert sorted(names) == [b"cache-control", b"x-content-type-options", b"x-request-id"]
        assert client.response_headers()["x-request-id"] == exchange.context.request_id

    run(scenario)


def test_a_body_within_the_limit_arrives_unchanged() -> None:
    async def scenario() -> None:
        assert await read(Client(b"ab", b"cd").exchange(max_body_bytes=4)) == b"abcd"

    run(scenario)


@pytest.mark.parametrize("headers", [CHUNKED, {"content-length": "4"}, {}])
def test_the_size_of_a_body_is_checked_whatever_its_headers_declare(headers: dict[str, str]) -> None:
    async def scenario() -> None:
        client = Client(b"ab", b"cd", b"e", b"never read", headers=headers)
        exchange = client.exchange(max_body_bytes=4)
        for _ in range(2):
            with pytest.raises(TooLarge, match="over 4 bytes"):
                await read(exchange)
        assert len(client.pending) == 1

    run(scenario)


@pytest.mark.parametrize(
    ("headers", "declared"),
    [({}, 0), ({"content-length": "17"}, 17), (CHUNKED, None), (CHUNKED | {"content-length": "17"}, None)],
)
def test_the_declared_length_is_read_from_the_headers(headers: dict[str, str], declared: int | None) -> None:
    async def scenario() -> None:
        assert Client(headers=headers).exchange().declared == declared

    run(scenario)


@pytest.mark.parametrize("value", ["-1", "+1", "1e3", "1_000", "٣", "", "9" * 5000])
def test_a_content_length_that_is_no_number_is_malformed(value: str) -> None:
    async def scenario() -> None:
        exchange = Client(headers={"content-length": value.encode("utf-8").decode("latin-1")}).exchange()
        with pytest.raises(MalformedRequest):
            _ = exchange.declared

    run(scenario)


def test_a_body_that_does_not_end_in_time_raises_body_timeout() -> None:
    async def scenario() -> None:
        exchange = Client(b"part", headers=CHUNKED, whole=False).exchange(body_timeout_s=0.01)
        with pytest.raises(BodyTimeout, match=r"0\.01 s"):
            await read(exchange)
        assert isinstance(exchange.failure, BodyTimeout)

    run(scenario)


def test_the_timeout_does_not_apply_after_the_body_is_complete() -> None:
    async def scenario() -> None:
        client = Client(b"whole")
        exchange = client.exchange(body_timeout_s=0.0)
        assert await read(exchange) == b"whole"
        client.left.set()
        assert await exchange.receive() == {"type": "http.disconnect"}

    run(scenario)


def test_the_application_s_response_to_a_failed_body_is_dropped() -> None:
    async def scenario() -> None:
        client = Client(b"too long", headers=CHUNKED)
        exchange = client.exchange(max_body_bytes=1)
        with pytest.raises(TooLarge):
            await read(exchange)
        await respond(exchange, 400)
        assert client.sent == []
        assert not exchange.started

    run(scenario)


def test_a_response_that_has_started_continues_when_the_body_fails() -> None:
    async def scenario() -> None:
        client = Client(b"too long", headers=CHUNKED)
        exchange = client.exchange(max_body_bytes=1)
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        with pytest.raises(TooLarge):
            await read(exchange)
        await exchange.send({"type": "http.response.body", "body": b"ok"})
        assert [message["type"] for message in client.sent][-1] == "http.response.body"

    run(scenario)


@pytest.mark.parametrize("headers", [CHUNKED, {"content-length": "8"}])
def test_a_response_to_an_unread_body_discards_the_rest_and_closes(headers: dict[str, str]) -> None:
    async def scenario() -> None:
        client = Client(b"un", b"read", headers=headers)
        exchange = client.exchange(linger_s=1000.0)
        await respond(exchange, 413)
        assert client.response_headers()["connection"] == "close"
        assert len(client.pending) == 2
        await exchange.finish()
        assert client.pending == []
        assert [message.get("body") for message in client.sent] == [None, b"ok", None]
        assert [message.get("more_body", False) for message in client.sent] == [False, True, False]

    run(scenario)


def test_the_rest_of_a_slow_body_is_read_for_linger_s_only() -> None:
    async def scenario() -> None:
        client = Client(b"part", headers=CHUNKED, whole=False)
        exchange = client.exchange(linger_s=0.01)
        await respond(exchange, 408)
        await exchange.finish()
        assert client.sent[-1] == {"type": "http.response.body"}

    run(scenario)


@pytest.mark.parametrize("pieces", [(), (b"read",)])
def test_the_connection_is_kept_if_the_body_was_read(pieces: Iterable[bytes]) -> None:
    async def scenario() -> None:
        client = Client(*pieces, headers={"content-length": str(len(b"".join(pieces)))})
        exchange = client.exchange()
        if pieces:
            await read(exchange)
        await respond(exchange)
        assert "connection" not in client.response_headers()
        assert len(client.sent) == 2

    run(scenario)


def test_work_is_cancelled_when_the_client_disconnects() -> None:
    async def scenario() -> None:
        client = Client(b"body")
        exchange = client.exchange()
        async with exchange.while_connected():
            await read(exchange)
            client.left.set()
            await asyncio.Event().wait()
        assert exchange.status == CLIENT_GONE

    run(scenario)


def test_a_disconnect_in_the_middle_of_a_body_is_not_an_error() -> None:
    async def scenario() -> None:
        client = Client(b"part", headers=CHUNKED, whole=False)
        client.left.set()
        exchange = client.exchange()
        async with exchange.while_connected():
            await read(exchange)
            raise ClientDisconnect
        await respond(exchange, 400)
        assert exchange.status == CLIENT_GONE

    run(scenario)


def test_a_response_that_has_started_is_not_cancelled_but_receives_the_disconnect() -> None:
    async def scenario() -> None:
        client = Client(b"body")
        exchange = client.exchange()
        async with exchange.while_connected():
            await read(exchange)
            await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
            client.left.set()
            assert await exchange.receive() == {"type": "http.disconnect"}
            await asyncio.sleep(0)
        assert exchange.status == 200

    run(scenario)


def test_the_application_s_own_timeout_is_not_mistaken_for_a_disconnect() -> None:
    async def scenario() -> None:
        exchange = Client(b"body").exchange()

        async def work() -> None:
            async with exchange.while_connected():
                await read(exchange)
                raise TimeoutError

        with pytest.raises(TimeoutError):
            await work()

    run(scenario)


@pytest.mark.parametrize("size", [0, 1, PIECE])
def test_a_response_of_one_piece_is_sent_as_it_is(size: int) -> None:
    async def scenario() -> None:
        client = Client(b"")
        exchange = client.exchange()
        await read(exchange)
        await respond(exchange, body=b"x" * size)
        assert client.sent[1:] == [{"type": "http.response.body", "body": b"x" * size}]

    run(scenario)


@pytest.mark.parametrize(("size", "pieces"), [(PIECE + 1, [PIECE, 1]), (3 * PIECE, [PIECE] * 3)])
@pytest.mark.parametrize("unread", [False, True])
def test_a_larger_response_is_sent_in_pieces(size: int, pieces: list[int], unread: bool) -> None:
    async def scenario() -> None:
        client = Client(b"body", headers={"content-length": "4"})
        exchange = client.exchange()
        if not unread:
            await read(exchange)
        body = bytes(number % 251 for number in range(size))
        await respond(exchange, body=body)
        assert [len(message["body"]) for message in client.sent[1:]] == pieces
        assert b"".join(message["body"] for message in client.sent[1:]) == body
        assert [message["more_body"] for message in client.sent[1:]] == [True] * (len(pieces) - 1) + [unread]

    run(scenario)


def test_a_response_lasts_until_its_reader_has_taken_it_and_ends_if_he_leaves() -> None:
    async def scenario() -> None:
        client = SlowReader(b"")
        exchange = client.exchange()
        await read(exchange)
        sending = asyncio.create_task(respond(exchange, body=b"x" * 5 * PIECE))
        for taken in range(3):
            await client.waiting.wait()
            assert (len(client.sent), sending.done()) == (taken, False)
            client.waiting.clear()
            client.taken.release()
        await client.waiting.wait()
        client.left.set()
        while not exchange._disconnected.is_set():
            await asyncio.sleep(0)
        client.taken.release()
        await sending
        assert len(client.sent) == 4

    run(scenario)


def test_a_response_reserves_what_it_takes_beyond_its_body_and_is_refused_without_room() -> None:
    async def scenario() -> None:
        budget = Budget(max_requests=10, max_bytes=8 * PIECE, largest=1)
        clients, exchanges = [Client(b"body") for _ in range(2)], []
        for client in clients:
            exchange = client.exchange()
            exchange.reservation = budget.admit("a", int)
            await read(exchange)
            exchanges.append(exchange)
        for exchange in exchanges:
            await respond(exchange, body=b"x" * 5 * PIECE)
        assert [exchange.started for exchange in exchanges] == [True, False]
        assert isinstance(exchanges[1].failure, QueueFull)
        assert (budget.bytes, clients[1].sent) == (5 * PIECE + 4, [])

    run(scenario)
