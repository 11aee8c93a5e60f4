"""Bad clients: too slow, disconnecting too soon, or sending invalid requests."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import time
import zlib
from asyncio import StreamReader, StreamWriter
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.client import BOUNDARY, MULTIPART, form
from benchmarks.server import HOST

PATIENCE_S = 60.0  # for any response
DRIP_S = 1.0  # between two bytes
LINGER_S = 2.0  # for which the service reads on after a refusal, before it closes
EARLY = 0.9  # of the time limit: a slow client closed before that was closed too early
SLACK_S = 3.0  # allowance for a busy machine
LARGE = b"/swagger/swagger-ui-bundle.js"  # larger than the buffers of a connection
PNG = b"\x89PNG\r\n\x1a\n"
EVENTS = "Accept: text/event-stream"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


def message(path: str, body: bytes, kind: str = MULTIPART, *more: str) -> bytes:
    return head(path, f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more) + body


def head(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", f"Host: {HOST}", *fields, "", ""]).encode()


def archive_form(archive: bytes) -> bytes:
    start = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="archive"; filename="a.zip"\r\n\r\n'
    return start.encode() + archive + f"\r\n--{BOUNDARY}--\r\n".encode()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    """Open a connection; abort it at the end."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(reader: StreamReader, writer: StreamWriter, sent: bytes) -> Reply:
    writer.write(sent)
    async with asyncio.timeout(PATIENCE_S):
        first, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        pairs = (line.partition(":") for line in fields)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await reader.readexactly(int(headers["content-length"]))
    return Reply(int(first.split()[1]), headers, body)


# --- slow -------------------------------------------------------------------------------------------


@dataclass
class Crowd:
    """Counts of slow clients by kind. A client whose connection is closed connects again until `over`."""

    opened: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    early: Counter[str] = field(default_factory=Counter)  # of the closed ones: before the time limit
    late: Counter[str] = field(default_factory=Counter)  # not closed in time, or not at all
    over: bool = False

    @property
    def open(self) -> int:
        return self.opened.total() - self.closed.total() - self.late.total()


Slow = Callable[[int], Awaitable[bool]]  # port → whether the service closed the connection early


def slow_clients(head_s: float, body_s: float, stall_s: float) -> dict[str, tuple[Slow, float]]:
    """Return each kind of client, and the seconds after which the service should have closed it."""
    first_line = head("/predict").partition(b"\r\n")[0]
    # Up to the start of the image: an invalid form would be refused before the time limit.
    opened = form([b""]).partition(b"\r\n\r\n")
    body = head("/predict", f"Content-Type: {MULTIPART}", "Content-Length: 100000") + opened[0] + opened[1]
    return {
        "silent": (lambda port: drip(port, b"", b""), head_s),
        "dripping head": (lambda port: drip(port, first_line + b"\r\nX: ", b"x"), head_s),
        "dripping body": (lambda port: drip(port, body, b"x"), body_s),
        "not reading": (lambda port: ignore(port, stall_s + SLACK_S), stall_s + SLACK_S),
    }


async def stay_slow(port: int, kind: str, slow: tuple[Slow, float], crowd: Crowd) -> None:
    client, seconds = slow
    while not crowd.over:
        crowd.opened[kind] += 1
        closed, began = False, time.monotonic()
        try:
            async with asyncio.timeout(seconds + LINGER_S + SLACK_S):
                closed = await client(port)
        except (OSError, TimeoutError):
            pass
        (crowd.closed if closed else crowd.late)[kind] += 1
        if closed and time.monotonic() - began < EARLY * seconds:
            crowd.early[kind] += 1


async def drip(port: int, start: bytes, drop: bytes) -> bool:
    async with connected(port) as (reader, writer):
        writer.write(start)
        end = asyncio.ensure_future(reader.read())
        while not end.done():
            writer.write(drop)
            await asyncio.wait([end], timeout=DRIP_S)
        await asyncio.gather(end, return_exceptions=True)  # a reset closes it too
    return True


async def ignore(port: int, seconds: float) -> bool:
    """Request a large file, do not read for `seconds`, then check whether all of it comes."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        # Otherwise the kernel's buffers would hold the response, and the service would not have to wait.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        client.setblocking(False)
        await loop.sock_connect(client, (HOST, port))
        await loop.sock_sendall(client, b"GET " + LARGE + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.sleep(seconds)
        received, length = 0, 0
        try:
            while length == 0 or received < length:
                data = await loop.sock_recv(client, 2**16)
                if not data:
                    return True
                if not length:
                    assert data.startswith(b"HTTP/1.1 200 "), data
                    length = int(re.findall(rb"content-length: (\d+)", data)[0])
                received += len(data)
        except ConnectionResetError:
            return True
    return False


# --- bad --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A bad request. status: the expected one; None: the client disconnects, after it has read `until`."""

    sent: bytes
    status: int | None = None
    until: bytes = b""


def faults(cell: bytes, archive: bytes) -> dict[str, Fault]:
    good, evaluation = message("/predict", form([cell])), archive_form(archive)
    text = b"neither an image nor an archive"
    chunked = ("Content-Type: image/jpeg", "Transfer-Encoding: chunked")
    return {
        "cut image": Fault(message("/predict", cell[: len(cell) // 2], "image/jpeg"), 422),
        "text for an image": Fault(message("/predict", form([text])), 415),
        "vast image": Fault(message("/predict", vast_image(), "image/png"), 413),
        "form without end": Fault(message("/predict", form([cell])[:-8]), 400),
        "other boundary": Fault(message("/predict", form([cell]).replace(BOUNDARY.encode(), b"x")), 400),
        "too much declared": Fault(head("/predict", f"Content-Length: {2**40}"), 413),
        "text for an archive": Fault(message("/evaluate", archive_form(text)), 422),
        "cut archive": Fault(message("/evaluate", archive_form(archive[:-9])), 422),
        "no HTTP": Fault(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        "no chunks": Fault(head("/predict", *chunked) + b"zz\r\n\r\n", 400),
        "gone while sending": Fault(good[: len(good) // 2]),
        "gone while waiting": Fault(good),
        "gone while /evaluate waits": Fault(message("/evaluate", evaluation)),
        "gone from events": Fault(message("/evaluate", evaluation, MULTIPART, EVENTS), until=b"progress"),
    }


def vast_image() -> bytes:
    """Return a PNG that declares 50,000 × 50,000 pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
    ]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return PNG + b"".join(packed)


async def commit(port: int, fault: Fault) -> int | None:
    """Send a bad request. Return the status of the response; None if the client disconnects."""
    async with connected(port) as (reader, writer):
        if fault.status is not None:
            return (await ask(reader, writer, fault.sent)).status
        writer.write(fault.sent)
        if fault.until:
            async with asyncio.timeout(PATIENCE_S):
                await reader.readuntil(fault.until)
        await asyncio.sleep(random.uniform(0, 0.05))
    return None
