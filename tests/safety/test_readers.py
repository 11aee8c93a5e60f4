"""Clients that read their responses slowly, from a running service."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import psutil
import pytest

from tests.running import FAKE, PATIENCE_S, Running, linux, running, wait_until
from tests.safety.memory import growing_less_than
from tests.safety.raw import connected, head

BIG = "/swagger/swagger-ui-bundle.js"
RESPONSES = 5  # one after another: more than the kernel's buffers hold
STALL_S = 0.5


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(FAKE, "--stall-timeout-s", str(STALL_S)) as service:
        yield service


def ask(client: socket.socket) -> None:
    line = f"GET {BIG} HTTP/1.1"
    client.sendall(head(line) * (RESPONSES - 1) + head(line, "Connection: close"))


def holds(service: Running, client: socket.socket) -> bool:
    """Whether the service still has the connection."""
    own = client.getsockname()[1]
    found = psutil.Process(service.process.pid).net_connections("tcp")
    return any(each.raddr and each.raddr.port == own for each in found)


def test_48_a_steady_reader_gets_all_of_its_responses_however_long_that_takes(service: Running) -> None:
    size = len(httpx.get(service.address + BIG).content)
    received = 0
    with connected(service.port, receive_buffer=2**16) as client:
        ask(client)
        began = time.monotonic()
        while piece := client.recv(2**15):
            received += len(piece)
            time.sleep(0.03)
    assert time.monotonic() - began > 4 * STALL_S  # or it would show nothing
    assert received > RESPONSES * size


@pytest.mark.parametrize(("size", "every_s"), [(1, STALL_S * 0.9), (900, STALL_S / 2)])
def test_48_a_reader_of_next_to_nothing_is_sent_away(service: Running, size: int, every_s: float) -> None:
    with connected(service.port, receive_buffer=1) as client:
        wait_until(lambda: holds(service, client))
        ask(client)
        deadline = time.monotonic() + PATIENCE_S
        while holds(service, client):
            assert time.monotonic() < deadline
            client.recv(size)
            time.sleep(every_s)


def count(cells: int, name: str) -> bytes:
    """Of `/differential`: its response repeats the cells that a person must review."""
    cell = {
        "label": "neutrophil",
        "confidence": 0.1,
        "filename": name,
        "review": True,
        "review_reasons": ["low_confidence"],
    }
    return json.dumps({"predictions": [cell] * cells}).encode()


@linux
def test_48_what_waits_for_slow_readers_stays_within_the_memory_for_bodies() -> None:
    body = count(2_000, "x" * 1_900)
    headers = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    request = head("POST /differential HTTP/1.1", *headers) + body
    statuses = []
    with running(FAKE, "--max-body-mib", "4", "--max-reserved-mib", "1") as service, ExitStack() as clients:
        with growing_less_than(70, service):
            for _ in range(24):
                client = clients.enter_context(connected(service.port, receive_buffer=1))
                client.sendall(request)
                statuses.append(client.recv(12)[-3:])
        served = statuses.count(b"200")
        assert statuses == [b"200"] * served + [b"429"] * (24 - served)
        assert 4 < served < 14


def test_48_a_slow_reader_does_not_keep_the_service_from_ending() -> None:
    with (
        running(FAKE, "--drain-s", "1", "--stall-timeout-s", str(10 * PATIENCE_S)) as service,
        connected(service.port, receive_buffer=1) as client,
    ):
        ask(client)
        client.recv(1)
        service.process.terminate()
        assert service.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in "".join(service.log)
