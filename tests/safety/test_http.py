"""Bytes that are no honest request, to a real server: too much, too slow, ambiguous, or without a key."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import httpx
import pytest

from app.edge.connection import MAX_HEADERS, MAX_WAITING
from app.edge.keys import add_key, make_key
from app.units import MIB
from benchmarks.client import MULTIPART, form
from tests.fake_classifier import png
from tests.running import FAKE, PATIENCE_S, Running, running, serving, wait_until
from tests.safety.memory import growing_less_than
from tests.safety.raw import (
    ARCHIVE,
    FORM,
    answer,
    chunk,
    connected,
    exchange,
    first_answer,
    head,
    rest,
    send_until_answered,
    statuses,
)
from tests.safety.sending import alone

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")

PNG = "Content-Type: image/png"
CHUNKED = "Transfer-Encoding: chunked"
SMALL = 16  # MiB: far below what the attacks would take, well above what a request does
BIG = "/swagger/swagger-ui-bundle.js"  # more than a socket's buffers hold


@contextmanager
def unharmed(*arguments: str) -> Iterator[Running]:
    """A service that still works, ends well and has no exception to tell of after all that was sent to it."""
    with running(FAKE, *arguments) as service:
        yield service
        assert httpx.get(f"{service.address}/healthz").status_code == 200
        assert service.end() == 0
        before, traceback, after = "".join(service.log).partition("Traceback")
        assert not traceback, before[-500:] + traceback + after[:4000]


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    times = ("--head-timeout-s", "1", "--body-timeout-s", "2", "--stall-timeout-s", "1")
    with unharmed(*times, "--max-body-mib", "1", "--max-reserved-mib", "2") as service:
        yield service


@dataclass(frozen=True)
class Keyed:
    service: Running
    file: Path
    secrets: dict[str, str]  # by scope

    @property
    def port(self) -> int:
        return self.service.port

    def key(self, scope: str) -> str:
        return f"Authorization: Bearer {self.secrets[scope]}"

    def status(self, method: str, path: str, secret: str | None = None) -> int:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        return httpx.request(method, self.service.address + path, headers=headers).status_code


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    secrets = {scope: add_key(file, scope, [scope]) for scope in ("predict", "evaluate", "metrics")}
    arguments = ("--keys", str(file), "--docs", "keyed", "--max-image-mib", "1", "--head-timeout-s", "1")
    with unharmed(*arguments) as service:
        yield Keyed(service, file, secrets)


def post(*headers: str) -> bytes:
    return head("POST /predict HTTP/1.1", PNG, *headers)


# 9: too many bytes


def test_09_a_body_of_the_limit_is_taken(service: Running) -> None:
    whole = png(0) + bytes(MIB - len(png(0)))
    with service.client() as client:
        assert alone(client, whole).status_code == 200


def test_09_a_declared_body_over_the_limit_is_413_before_any_of_it_is_sent(service: Running) -> None:
    with connected(service.port) as client:
        client.sendall(post(f"Content-Length: {MIB + 1}"))
        assert statuses(answer(client)) == [413]
        client.sendall(bytes(MIB + 1))
        assert statuses(rest(client)) == []


def test_09_a_chunked_body_over_the_limit_is_413_before_its_end(service: Running) -> None:
    with connected(service.port) as client, growing_less_than(SMALL, service):
        client.sendall(post(CHUNKED) + chunk(bytes(MIB)) + chunk(b"x"))
        received = answer(client)
        assert statuses(received) == [413]
        assert b"connection: close" in received.lower()
        rest(client)


def test_09_bodies_of_unknown_length_reserve_what_has_arrived_and_give_it_back(service: Running) -> None:
    with service.client() as client:
        deadline = time.monotonic() + PATIENCE_S
        while (status := status_beside_another(service, client)) != 429:  # one may have timed out: 408
            assert (status, time.monotonic() < deadline) == (408, True)
        wait_until(lambda: alone(client, png(0)).status_code == 200)


def status_beside_another(service: Running, client: httpx.Client) -> int:
    """How one of two bodies is answered that are too much for their caller; a short one is admitted."""
    with connected(service.port) as first, connected(service.port) as second:
        for each in (first, second):
            each.sendall(head("POST /evaluate HTTP/1.1", ARCHIVE, CHUNKED) + chunk(FORM))
        assert alone(client, png(0)).status_code == 200
        for each in (first, second):
            each.sendall(chunk(bytes(MIB - 2 * len(FORM))))
        return statuses(first_answer(first, second))[0]


def test_09_a_part_over_the_limit_of_an_image_is_413_before_its_end(keyed: Keyed) -> None:
    body = form([bytes(3 * MIB)])
    with connected(keyed.port) as client:
        length = f"Content-Length: {len(body)}"
        line = "POST /predict HTTP/1.1"
        client.sendall(head(line, keyed.key("predict"), f"Content-Type: {MULTIPART}", length))
        client.sendall(body[: 2 * MIB])
        assert statuses(answer(client)) == [413]


# 10: too much around a body

ENDLESS = {
    "one-byte chunks": (post(CHUNKED), b"1\r\nx\r\n" * 10_000),
    "chunk extension": (post(CHUNKED) + b"1;", b"x" * 100_000),
    "trailers": (post(CHUNKED) + b"1\r\nx\r\n0\r\n", b"a: b\r\n" * 10_000),
    "target": (b"GET /healthz?", b"x" * 100_000),
    "header name": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"x" * 100_000),
    "header value": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nx: ", b"x" * 100_000),
    "headers": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n" * 10_000),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_10_what_frames_a_body_without_end_is_400_in_bounded_memory(service: Running, kind: str) -> None:
    start, more = ENDLESS[kind]
    with connected(service.port) as client, growing_less_than(SMALL, service):
        client.sendall(start)
        assert send_until_answered(client, repeat(more, 1000))
        assert statuses(rest(client)) == [400]


def test_10_one_byte_chunks_without_a_key_are_401_and_no_longer_read(keyed: Keyed) -> None:
    with connected(keyed.port) as client, growing_less_than(SMALL, keyed.service):
        client.sendall(post(CHUNKED))
        assert statuses(answer(client)) == [401]
        send_until_answered(client, repeat(b"1\r\nx\r\n" * 10_000, 100))


@pytest.mark.parametrize("target", ["/healthz", "/model", "/docs"])
def test_10_requests_that_do_not_wait_for_answers_are_cut_off_in_bounded_memory(
    service: Running, target: str
) -> None:
    flood = head(f"GET {target} HTTP/1.1") * 5000
    with connected(service.port) as client, growing_less_than(SMALL, service):
        send_until_answered(client, repeat(flood, 20))
        found = statuses(rest(client))
        assert {*found} == {200}
        assert len(found) <= MAX_WAITING + 1


def test_10_a_head_of_one_packet_is_bounded_like_any_other(service: Running) -> None:
    assert statuses(exchange(service.port, head("GET /healthz HTTP/1.1", "a: " + "b" * 70_000))) == [400]


def test_10_framing_that_arrives_with_its_head_is_400(service: Running) -> None:
    with connected(service.port) as client:
        client.sendall(post(CHUNKED) + (b"1;" + b"a" * 60_000 + b"\r\nx\r\n") * 3)
        assert statuses(answer(client)) == [400]


def test_10_long_heads_that_are_pipelined_wait_unparsed_and_are_answered(service: Running) -> None:
    request = head("GET /healthz HTTP/1.1", *["a: " + "b" * 600] * 50)
    number = 4 * MAX_WAITING
    with connected(service.port) as client, growing_less_than(SMALL, service):
        client.sendall(request * number + head("GET /healthz HTTP/1.1", "Connection: close"))
        assert statuses(rest(client)) == [200] * (number + 1)


@pytest.mark.parametrize("headers", [["aa:"] * 12_800, ["a: " + "b" * 600] * 80], ids=["tiny", "long"])
def test_10_heads_behind_a_response_that_is_not_read_take_little_memory(
    service: Running, headers: list[str]
) -> None:
    flood = head("GET /healthz HTTP/1.1", *headers) * 20
    with ExitStack() as unread:
        clients = [unread.enter_context(connected(service.port, receive_buffer=1)) for _ in range(40)]
        for client in clients:
            client.sendall(head(f"GET {BIG} HTTP/1.1"))
        with growing_less_than(40 * 0.6, service):
            for client in clients:
                client.settimeout(0.05)
                with suppress(OSError):  # the service reads no more, or has closed
                    client.sendall(flood)
            assert httpx.get(f"{service.address}/healthz").status_code == 200


# 11: forms


def test_11_ten_thousand_parts_are_413_before_their_end(service: Running) -> None:
    body = form([b""] * 10_000)
    with connected(service.port) as client, growing_less_than(SMALL, service):
        length = f"Content-Length: {len(body)}"
        client.sendall(head("POST /predict HTTP/1.1", f"Content-Type: {MULTIPART}", length) + body[:-10])
        assert statuses(answer(client)) == [413]


FORMS = {
    "300-byte boundary": (f"multipart/form-data; boundary={'b' * 300}", form([png(0)])),
    "no boundary": ("multipart/form-data", form([png(0)])),
    "empty boundary": ("multipart/form-data; boundary=", form([png(0)])),
    "another boundary": ("multipart/form-data; boundary=another", form([png(0)])),
    "no end": (MULTIPART, form([png(0)])[:-30]),
    "no parts": (MULTIPART, b""),
    "not a form": (MULTIPART, b"\0" * 1000),
    "endless part header": (MULTIPART, form([])[:13] + b"\r\nA: " + b"x" * 500_000),
    "100,000 part headers": (MULTIPART, form([])[:13] + b"\r\n" + b"A: b\r\n" * 100_000),
    "no name": (MULTIPART, form([png(0)]).replace(b'name="files"', b"")),
}


@pytest.mark.parametrize("kind", FORMS)
def test_11_a_form_that_is_none_is_400(service: Running, kind: str) -> None:
    content_type, body = FORMS[kind]
    with service.client() as client, growing_less_than(SMALL, service):
        answer = client.post("/predict", content=body, headers={"content-type": content_type})
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


# 12: slow clients

SLOW = {
    "silent": [b""],
    "head byte by byte": [bytes([byte]) for byte in head("GET /healthz HTTP/1.1", "a: " + "b" * 1000)],
    "body byte by byte": [post("Content-Length: 1000"), *[b"x"] * 999],
    "chunks one by one": [post(CHUNKED), *[b"1\r\nx\r\n"] * 1000],
    "empty lines": [head("GET /healthz HTTP/1.1"), *[b"\r\n"] * 1000],
    "after an upgrade": [head("GET /healthz HTTP/1.1", "Connection: Upgrade", "Upgrade: x"), *[b"x"] * 1000],
}
EACH, UNREADING = 80, 20  # clients


async def dawdle(port: int, pieces: list[bytes]) -> None:
    """Until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.1)

    sending = asyncio.create_task(send())
    try:
        while await reader.read(2**16):
            pass
    except ConnectionResetError:
        pass
    sending.cancel()
    writer.transport.abort()


async def crowd(service: Running) -> list[int]:
    """What another client is answered while all the slow ones are there."""
    slow = [
        asyncio.create_task(dawdle(service.port, pieces)) for pieces in SLOW.values() for _ in range(EACH)
    ]
    found = []
    headers = {"content-type": "image/png"}
    with httpx.Client(base_url=service.address) as client:
        async with asyncio.timeout(PATIENCE_S):
            while not all(task.done() for task in slow):
                # In a thread: this loop may be late by more than the service waits for a head.
                sent = await asyncio.to_thread(client.post, "/predict", content=png(0), headers=headers)
                found.append(sent.status_code)
                await asyncio.sleep(0.02)
    await asyncio.gather(*slow)
    return found


def test_12_500_slow_clients_are_sent_away_and_another_is_answered_meanwhile(service: Running) -> None:
    assert len(SLOW) * EACH + UNREADING == 500
    before = open_files(service)
    with ExitStack() as unreading, growing_less_than(64, service):
        for number in range(UNREADING):
            client = unreading.enter_context(connected(service.port, receive_buffer=1))
            client.sendall(head(f"GET {BIG} HTTP/1.1") * 8)
            if number % 2:
                client.shutdown(socket.SHUT_WR)
        found = asyncio.run(crowd(service))
        assert {*found} == {200}
        wait_until(lambda: open_files(service) <= before)


def open_files(service: Running) -> int:
    return len([*Path(f"/proc/{service.process.pid}/fd").iterdir()])


# 13: requests that others may understand in another way

WITH_KEY, SMUGGLED = "KEY", head("GET /model HTTP/1.1")
END = b"0\r\n\r\n"


def keyed_post(*headers: str, body: bytes = END) -> bytes:
    return head("POST /predict HTTP/1.1", WITH_KEY, *headers) + body


def get(*headers: str, line: str = "GET /healthz HTTP/1.1") -> bytes:
    return "\r\n".join([line, *headers, "", ""]).encode("latin-1")


AMBIGUOUS = {
    "Content-Length, then Transfer-Encoding": keyed_post("Content-Length: 4", CHUNKED),
    "Transfer-Encoding, then Content-Length": keyed_post(CHUNKED, "Content-Length: 4"),
    "two lengths": keyed_post("Content-Length: 5", "Content-Length: 4"),
    "a length twice": keyed_post("Content-Length: 5", "Content-Length: 5"),
    "a list of lengths": keyed_post("Content-Length: 5, 5"),
    "a signed length": keyed_post("Content-Length: +5"),
    "a negative length": keyed_post("Content-Length: -5"),
    "an empty length": keyed_post("Content-Length:"),
    "a length over 64 bits": keyed_post("Content-Length: 18446744073709551621"),
    "a space before the colon": keyed_post("Transfer-Encoding : chunked"),
    "chunked, identity": keyed_post("Transfer-Encoding: chunked, identity"),
    "identity, chunked": keyed_post("Transfer-Encoding: identity, chunked"),
    "gzip, chunked": keyed_post("Transfer-Encoding: gzip, chunked"),
    "identity": keyed_post("Transfer-Encoding: identity"),
    "xchunked": keyed_post("Transfer-Encoding: xchunked"),
    "an empty coding": keyed_post("Transfer-Encoding:"),
    "chunked twice": keyed_post(CHUNKED, CHUNKED),
    "chunked after a vertical tab": keyed_post("Transfer-Encoding: \x0bchunked"),
    "chunked on a line of its own": keyed_post("Transfer-Encoding:", " chunked"),
    "chunked in HTTP/1.0": get("Host: x", CHUNKED, line="POST /predict HTTP/1.0") + END,
    "a chunk size that is no number": keyed_post(CHUNKED, body=b"z\r\n\r\n"),
    "a negative chunk size": keyed_post(CHUNKED, body=b"-1\r\n\r\n"),
    "a chunk size with 0x": keyed_post(CHUNKED, body=b"0x0\r\n\r\n"),
    "a chunk size with a space": keyed_post(CHUNKED, body=b"0 \r\n\r\n"),
    "a chunk size over 64 bits": keyed_post(CHUNKED, body=b"10000000000000000\r\n\r\n"),
    "a chunk longer than it says": keyed_post(CHUNKED, body=b"1\r\nxyz" + END),
    "a chunk that ends in a line feed": keyed_post(CHUNKED, body=b"1\r\nx\n" + END),
    "chunk sizes that end in line feeds": keyed_post(CHUNKED, body=b"1\nx\n0\n\n"),
    "a line feed in a chunk extension": keyed_post(CHUNKED, body=b"1;a\nb\r\nx\r\n" + END),
    "a length in a trailer": keyed_post(CHUNKED, body=b"0\r\nContent-Length: 50\r\n\r\n"),
    "lines that end in line feeds": b"GET /healthz HTTP/1.1\nHost: x\n\n",
    "a line that ends in a line feed": b"GET /healthz HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
    "a carriage return in a value": get("Host: x\rA: b"),
    "a NUL in a value": get("Host: x", "A: b\0c"),
    "a NUL in a name": get("Host: x", "A\0: b"),
    "a space in a name": get("Host: x", "A b: c"),
    "a space before a name": get(" Host: x"),
    "no name": get("Host: x", ": c"),
    "no colon": get("Host: x", "A"),
    "a folded value": get("Host: x", "A: b", " c"),
    "no Host": get(),
    "two Hosts": get("Host: x", "Host: y"),
    "a Host twice": get("Host: x", "Host: x"),
    "an empty Host": get("Host:"),
    "a Host with a path": get("Host: x/y"),
    "a Host with a user": get("Host: x@y"),
    "a Host with a space": get("Host: x y"),
    "a Host list": get("Host: x, y"),
    "an absolute target without Host": get(line="GET http://x/healthz HTTP/1.1"),
    "no version": get(line="GET /healthz"),
    "HTTP/0.9": get("Host: x", line="GET /healthz HTTP/0.9"),
    "HTTP/1.2": get("Host: x", line="GET /healthz HTTP/1.2"),
    "HTTP/2.0": get("Host: x", line="GET /healthz HTTP/2.0"),
    "HTTP/3.0": get("Host: x", line="GET /healthz HTTP/3.0"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "CONNECT": get("Host: x", line="CONNECT x:80 HTTP/1.1"),
    "CONNECT to a path": get("Host: x", line="CONNECT /healthz HTTP/1.1"),
    "a lower-case method": get("Host: x", line="get /healthz HTTP/1.1"),
    "a target without a slash": get("Host: x", line="GET healthz HTTP/1.1"),
    "a byte over 127 in the target": get("Host: x", line="GET /healthz\xff HTTP/1.1"),
    "tabs": get("Host: x", line="GET\t/healthz\tHTTP/1.1"),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_13_an_ambiguous_request_is_400_and_the_last_on_its_connection(keyed: Keyed, kind: str) -> None:
    request = AMBIGUOUS[kind].replace(b"KEY", keyed.key("predict").encode())
    received = exchange(keyed.port, request + SMUGGLED)
    assert b"connection: close" in received.lower()
    assert statuses(received) == [400]


@pytest.mark.parametrize(
    "request_",
    [
        post(CHUNKED) + b"0\r\nKEY\r\n\r\n",
        post("Content-Length: 0", "KEY", "KEY"),
        post("Content-Length: 0", "KEY", "X-API-Key: x"),
        get("Host: x", line="GET http://x/healthz/../model HTTP/1.1"),
        get("Host: x", line="GET http://healthz/model HTTP/1.1"),
        get("Host: x", line="GET http://x@healthz/model HTTP/1.1"),
        get("Host: x", line="GET //healthz/model HTTP/1.1"),
        get("Host: x", line="GET /healthz/../model HTTP/1.1"),
        get("Host: x", line="GET /problems/..%2fmodel HTTP/1.1"),
        get("Host: x", line="GET /%6dodel HTTP/1.1"),
        get("Host: x", line="GET /model;/healthz HTTP/1.1"),
        get("Host: x", line="GET /model?/healthz HTTP/1.1"),
        get("Host: x", line="GET /model#/healthz HTTP/1.1"),
        get("Host: x", line="GET /healthz%2f HTTP/1.1"),
        get("Host: x", line="OPTIONS * HTTP/1.1"),
        get("Host: x", "X-Original-URL: /healthz", "X-Rewrite-URL: /healthz", line="GET /model HTTP/1.1"),
        get("Host: x", "X-HTTP-Method-Override: GET", line="POST /model HTTP/1.1"),
        get("Host: x", "X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", line="GET /model HTTP/1.1"),
        get("Host: x", "Connection: Upgrade", "Upgrade: websocket", line="GET /model HTTP/1.1"),
    ],
)
def test_13_no_way_of_writing_a_request_needs_no_key(keyed: Keyed, request_: bytes) -> None:
    request_ = request_.replace(b"KEY", keyed.key("predict").encode())
    with connected(keyed.port) as client:
        client.sendall(request_)
        assert statuses(answer(client)) == [401]


def test_13_what_follows_an_offer_to_upgrade_needs_its_own_key(keyed: Keyed) -> None:
    offer = ("Connection: Upgrade", "Upgrade: h2c")
    model = head("GET /model HTTP/1.1", keyed.key("predict"), *offer)
    received = exchange(keyed.port, model + head("GET /model HTTP/1.1", *offer, "Connection: close"))
    assert statuses(received) == [200, 401]


def test_13_each_of_two_requests_on_a_connection_needs_its_own_key(keyed: Keyed) -> None:
    first = head("GET /model HTTP/1.1", keyed.key("predict"))
    last = head("GET /model HTTP/1.1", "Connection: close")
    assert statuses(exchange(keyed.port, first + last)) == [200, 401]
    assert statuses(
        exchange(keyed.port, first + head("GET /model HTTP/1.1", keyed.key("predict")) + last)
    ) == [
        200,
        200,
        401,
    ]


def test_13_a_broken_request_takes_no_answer_from_the_one_before_it(keyed: Keyed) -> None:
    """Behind a proxy, the request before may be another client's."""
    first = head("GET /model HTTP/1.1", keyed.key("predict"))
    received = exchange(keyed.port, first + keyed_post(CHUNKED, body=b"1\r\nxyz").replace(b"KEY", b"A: b"))
    assert statuses(received) == [200]


# 14: keys

BODY = 50 * MIB
STRANGERS: dict[str, tuple[Callable[[Keyed], list[str]], int]] = {
    "no key": (lambda _: [], 401),
    "a wrong key": (lambda _: [f"Authorization: Bearer {make_key('x', ['predict'])[0]}"], 401),
    "half a key": (lambda keyed: [keyed.key("predict")[:-1]], 401),
    "two keys": (lambda keyed: [keyed.key("predict"), keyed.key("evaluate")], 401),
    "a key as a password": (lambda keyed: [keyed.key("predict").replace("Bearer", "Basic")], 401),
    "a key for something else": (lambda keyed: [keyed.key("evaluate")], 403),
}


@pytest.mark.parametrize("length", [f"Content-Length: {BODY}", CHUNKED])
@pytest.mark.parametrize("kind", STRANGERS)
def test_14_a_stranger_is_refused_before_the_body_is_read(keyed: Keyed, kind: str, length: str) -> None:
    shown, status = STRANGERS[kind]
    with connected(keyed.port) as client, growing_less_than(SMALL, keyed.service):
        client.sendall(post(*shown(keyed), "Expect: 100-continue", length))
        assert statuses(answer(client)) == [status]
        # Whoever sends all the same is read for a while, into nothing.
        piece = chunk(bytes(MIB - 12)) if length == CHUNKED else bytes(MIB)
        send_until_answered(client, repeat(piece, BODY // MIB))


def test_14_two_keys_are_good_at_once_and_a_key_comes_and_goes_without_a_restart(keyed: Keyed) -> None:
    old, before = keyed.secrets["predict"], keyed.file.read_text()
    new = add_key(keyed.file, "predict", ["predict"])
    wait_until(lambda: keyed.status("POST", "/predict", new) == 415)
    assert keyed.status("POST", "/predict", old) == 415
    keyed.file.write_text(before)
    wait_until(lambda: keyed.status("POST", "/predict", new) == 401)
    assert keyed.status("POST", "/predict", old) == 415


def test_14_probes_need_no_key_and_metrics_and_documents_one_where_they_are_keyed(keyed: Keyed) -> None:
    assert [keyed.status("GET", path) for path in ("/healthz", "/readyz")] == [200, 200]
    for path in ("/metrics", "/docs", "/openapi.json", BIG, "/model"):
        assert keyed.status("GET", path) == 401, path
    assert keyed.status("GET", "/metrics", keyed.secrets["predict"]) == 403
    assert keyed.status("GET", "/metrics", keyed.secrets["metrics"]) == 200
    assert keyed.status("GET", "/docs", keyed.secrets["predict"]) == 200


def test_14_metrics_and_documents_that_are_closed_are_not_there_even_with_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    secret = add_key(file, "all", ["predict", "evaluate", "metrics"])
    with unharmed("--keys", str(file), "--metrics", "closed", "--docs", "closed") as service:
        keyed = Keyed(service, file, {})
        for path in ("/metrics", "/docs", "/openapi.json", BIG):
            assert (path, keyed.status("GET", path, secret)) == (path, 404)
            assert (path, keyed.status("GET", path)) == (path, 401)


def test_14_without_keys_the_service_starts_on_loopback_only() -> None:
    with serving(FAKE, "--host", "0.0.0.0") as process:
        _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "LEUKO_HOST is '0.0.0.0'" in log
    assert "LEUKO_KEYS" in log


def test_14_whoever_wants_it_in_so_many_words_lets_everybody_in() -> None:
    with running(FAKE, "--host", "0.0.0.0", environ={"LEUKO_WITHOUT_KEYS": "anywhere"}) as service:
        assert httpx.get(f"{service.address}/model").status_code == 200


def test_13_what_is_no_http_is_counted_and_fills_no_log() -> None:
    with running(FAKE) as service:
        for _ in range(20):
            assert statuses(exchange(service.port, b"\x16\x03\x01\r\n\r\n")) == [400]
        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert httpx.post(f"{service.address}/predict", content=b"none", headers=headers).status_code == 400
        text = httpx.get(f"{service.address}/metrics").text
        assert service.end() == 0
    assert 'code="400",method="other",route="unmatched"} 20.0' in text
    assert [json.loads(line)["message"] for line in service.log] == ["POST /predict 400"]


# 49: what is slow to parse


@pytest.mark.parametrize(("number", "status"), [(MAX_HEADERS - 1, 200), (MAX_HEADERS, 400), (48_000, 400)])
def test_49_headers_are_limited_in_number(service: Running, number: int, status: int) -> None:
    request = head("GET /healthz HTTP/1.1", *["a:"] * number)
    with connected(service.port) as client, growing_less_than(SMALL, service):
        for _ in range(20 if status == 200 else 1):
            client.sendall(request)
            assert statuses(answer(client)) == [status]
