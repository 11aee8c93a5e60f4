"""The fork server and the decoder processes that it forks: the only code that reads an image's bytes.

The fork server's standard input is a socket. For every file descriptor that arrives through it, it forks a
decoder that serves that descriptor; when the socket closes, it exits. A decoder is forked, not started
afresh, so that a lost one is replaced within milliseconds.
"""

from __future__ import annotations

import gc
import io
import json
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from app.errors import LeukoError, TooLarge, UndecodableImage, UnsupportedFormat
from app.imaging import dicom, dicom_writer
from app.imaging.decode import ACCEPTED, decode
from app.imaging.framing import Preprocessing, frame_cell
from app.imaging.limits import ImageLimits

CONFIG_BYTES = 4096  # largest message with a DecoderConfig
REQUEST = struct.Struct("=I")  # length of the image that follows
# Kind of the reply; the frame: left, top, width, height, nucleus; length of the text that follows.
REPLY = struct.Struct("=B4d?I")
READY = b"\0"
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
CELL, DEFECT = 0, 255  # kinds: RGB pixels [size, size, 3] follow; a traceback follows
# Kinds 1, 2, 3: the error's detail follows.
ERRORS: tuple[type[LeukoError], ...] = (TooLarge, UnsupportedFormat, UndecodableImage)


@dataclass(frozen=True)
class DecoderConfig:
    """Configuration of a decoder. patience_s: time limit for one image, after which the decoder ends."""

    limits: ImageLimits
    preprocessing: Preprocessing
    patience_s: float

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, text: bytes) -> DecoderConfig:
        document = json.loads(text)
        limits, preprocessing = ImageLimits(**document["limits"]), Preprocessing(**document["preprocessing"])
        return cls(limits, preprocessing, document["patience_s"])


def main() -> int:
    # The service ends this process by closing the socket: a signal to the whole group would be too early.
    for sig in IGNORED:
        signal.signal(sig, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    rehearse()
    gc.freeze()  # else garbage collection in the children would write to pages that they share
    devnull = os.open(os.devnull, os.O_WRONLY)
    control = socket.socket(fileno=0)
    try:
        control.sendall(READY)
        while True:
            text, descriptors, _, _ = socket.recv_fds(control, CONFIG_BYTES, 1)
            if not text:
                return 0
            if os.fork() == 0:
                control.close()
                os.dup2(devnull, 2)  # libtiff prints warnings about broken images
                run(socket.socket(fileno=descriptors[0]), DecoderConfig.load(text))
            os.close(descriptors[0])
    except ConnectionError:  # the service has ended without reading READY
        return 0


def run(connection: socket.socket, config: DecoderConfig) -> NoReturn:
    status = 1
    try:
        confine()
        connection.sendall(READY)
        serve(connection, config)
        status = 0
    except BrokenPipeError:
        status = 0
    finally:
        os._exit(status)


def rehearse() -> None:
    """Decode an image of each format, so that every import is done before `confine` forbids opening files."""
    white = Image.new("RGB", (16, 16), "white")
    for kind in ACCEPTED:
        file = io.BytesIO()
        white.save(file, kind)
        frame_cell(decode(file.getvalue()), Preprocessing())
    if dicom.installed():
        for syntax in (*dicom.NATIVE, *dicom.ENCODED):
            decode(dicom_writer.write(white, syntax))


def confine() -> None:
    """Forbid opening and writing files, sockets, new processes, and core dumps, which would hold images."""
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    sys.meta_path.insert(0, NoImports())


class NoImports:
    """Refuse imports: a module that cannot be opened must not look like a broken image."""

    def find_spec(self, name: str, *_: Any) -> None:
        raise RuntimeError(f"a decoder imports {name}: rehearse() must import it before")


def serve(connection: socket.socket, config: DecoderConfig) -> None:
    """Reply to each image until the other end closes."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default action interrupts C code too
    while True:
        head = receive(connection, REQUEST.size)
        if not head:
            return
        data = receive(connection, *REQUEST.unpack(head))
        signal.setitimer(signal.ITIMER_REAL, config.patience_s)
        reply = answer(data, config)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for part in reply:
            connection.sendall(part)


def answer(data: bytes, config: DecoderConfig) -> Sequence[bytes | memoryview]:
    """Decode an image and return the reply's head and body."""
    try:
        cell = frame_cell(decode(data, config.limits), config.preprocessing)
    except ERRORS as error:
        return _text(1 + ERRORS.index(type(error)), error.detail)
    except Exception:  # a defect of ours: the service raises it
        return _text(DEFECT, traceback.format_exc())
    frame, pixels = cell.frame, np.ascontiguousarray(cell.pixels)
    head = REPLY.pack(CELL, frame.left, frame.top, frame.width, frame.height, frame.nucleus, pixels.nbytes)
    return head, pixels.data.cast("B")


def _text(kind: int, text: str) -> Sequence[bytes]:
    body = text.encode()
    return REPLY.pack(kind, 0, 0, 0, 0, False, len(body)), body


def receive(connection: socket.socket, size: int) -> bytes:
    """Return `size` bytes, or b"" if the other end has closed."""
    data = connection.recv(size, socket.MSG_WAITALL)  # all at once, unless a signal interrupts it
    while 0 < len(data) < size:
        rest = connection.recv(size - len(data), socket.MSG_WAITALL)
        data = data + rest if rest else b""
    return data


if __name__ == "__main__":
    sys.exit(main())
