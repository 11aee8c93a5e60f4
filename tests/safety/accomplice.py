"""`app.inference.decode_worker` with images that take the decoder over for the replies that follow.

`intruder` tries what a decoder can do to the machine; this one abuses its only connection, to the service.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import NoReturn

from app.inference import decode_worker, fork_server
from app.inference.decode_worker import CELL, DEFECT, ERRORS, NOTHING, REPLY, REQUEST, DecoderConfig, receive
from tests.fake_classifier import png
from tests.safety.intruder import MARK, NOBODY, UID, fork_decoders

DEAF, SIPPING = "deaf", "sipping"  # they answer, then read no image, or 40 kB of it every half second
FAILING = "failing"  # from then on, every reply is a defect that quotes an image
SECRET = "4a6f686e"  # of the image of another client
# Details of errors: what a decoder could hand its accomplice.
DETAILS = {
    "long": SECRET * 8000,
    "a little long": SECRET * 25 + ".",
    "a terminal's commands": "\x1b]0;" + SECRET,
    "lines": SECRET + "\r\nSet-Cookie: a=b",
    "another direction": "\u202e" + SECRET,
    "a surrogate": "\ud800" + SECRET,
}
SHORT = "a detail as long as those of ours can be"
UNDECODABLE = 3
assert ERRORS[UNDECODABLE - 1].__name__ == "UndecodableImage"


def message(name: str) -> bytes:
    """Return the image that has its decoder do what `name` says."""
    return png(0) + MARK + name.encode()


def serve(connection: socket.socket, config: DecoderConfig) -> None:
    while head := receive(connection, REQUEST.size):
        data = receive(connection, REQUEST.unpack(head)[0])
        name = data.partition(MARK)[2].decode()
        if name in (DEAF, SIPPING):
            reply(connection, *decode_worker.answer(data, config)[::2])
            linger(connection, 40_000 if name == SIPPING else 0)
        elif name == FAILING:
            while head:
                reply(connection, DEFECT, b"ValueError " + SECRET.encode())
                head = receive(connection, REQUEST.size)
                receive(connection, REQUEST.unpack(head)[0])
        elif name:
            detail = DETAILS.get(name, SHORT)
            reply(connection, UNDECODABLE, detail.encode("utf-8", "surrogatepass"))
        else:
            kind, _, body = decode_worker.answer(data, config)
            reply(connection, kind, body)


def reply(connection: socket.socket, kind: int, body: bytes | memoryview) -> None:
    measures = (0, 0, 1, 1, False, *NOTHING[5:]) if kind == CELL else NOTHING
    connection.sendall(REPLY.pack(kind, False, *measures, len(body)) + bytes(body))


def linger(connection: socket.socket, sip: int) -> NoReturn:
    while True:
        time.sleep(0.5)
        if sip:
            connection.recv(sip)


def main() -> int:
    decode_worker.serve = serve
    return fork_decoders()


# `runs_decoder` knows decoders by the name of the module.
DECODER = "import sys, app.inference.decode_worker, tests.safety.accomplice as it; sys.exit(it.main())"
ABETTED = "import tests.safety.accomplice as accomplice; accomplice.serve_images()"
ENVIRON = {UID: str(NOBODY)} if os.geteuid() == 0 else {}


def serve_images() -> None:
    """`leuko serve` with such decoders."""
    from app.cli.main import main as leuko
    from tests.fake_classifier import load

    fork_server.shared._command = (sys.executable, "-c", DECODER)
    sys.exit(leuko(load=load))
