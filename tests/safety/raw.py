"""HTTP as bytes on a socket, for what no client library would send."""

from __future__ import annotations

import re
import select
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tests.running import PATIENCE_S

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")

# An archive, which takes ten times its first MiB in memory: a service that accepts 1 MiB has room for one.
ARCHIVE = "Content-Type: multipart/form-data; boundary=x"
FORM = b'--x\r\nContent-Disposition: form-data; name="archive"; filename="a.zip"\r\n\r\n'


@contextmanager
def connected(port: int, *, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as client:
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", port))
        yield client


def exchange(port: int, data: bytes) -> bytes:
    """All that comes back; the server must be who closes."""
    with connected(port) as client:
        client.sendall(data)
        return rest(client)


def rest(client: socket.socket) -> bytes:
    """What still comes until the server closes."""
    received = bytearray()
    while piece := client.recv(2**16):
        received += piece
    return bytes(received)


def answer(client: socket.socket) -> bytes:
    """The head of the next answer, and what came with it."""
    received = bytearray()
    while b"\r\n\r\n" not in received:
        piece = client.recv(2**16)
        assert piece, bytes(received)
        received += piece
    return bytes(received)


def first_answer(*clients: socket.socket) -> bytes:
    """The head of the first answer that any of them gets."""
    (readable, *_), _, _ = select.select(clients, [], [], PATIENCE_S)
    return answer(readable)


def send_until_answered(client: socket.socket, pieces: Iterable[bytes]) -> bool:
    """Whether an answer came, or the connection went, before all was sent."""
    for piece in pieces:
        if select.select([client], [], [], 0)[0]:
            return True
        try:
            client.sendall(piece)
        except OSError:
            return True
    return False


def statuses(received: bytes) -> list[int]:
    """Of each answer in it, one after another."""
    return [int(status) for status in STATUS.findall(received)]


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join([line, "Host: localhost", *headers, "", ""]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
