"""The fork server and the decoder processes that it forks: the only code that reads an image's bytes.

The fork server's standard input is a socket. For every file descriptor that arrives through it, it forks a
decoder that serves that descriptor; when the socket closes, it exits, and all decoders with it. A decoder is
forked, not started afresh, so that a lost one is replaced within milliseconds. `confinement` has what both
processes give up.
"""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import socket
import struct
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

import app
from app.errors import LeukoError, TooLarge, UndecodableImage, UnsupportedFormat
from app.imaging import dicom, dicom_writer, small_pydicom
from app.imaging.decode import ACCEPTED, decode
from app.imaging.framing import Cell, Preprocessing, frame_cell, frame_cells
from app.imaging.limits import NO_MEMORY, ImageLimits
from app.imaging.style import describe as describe_style
from app.inference import confinement
from app.inference.fork_server import HELLO, READY
from app.private import release_memory

CONFIG_BYTES = 4096  # largest message with a DecoderConfig
REQUEST = struct.Struct("=I?")  # length of the image that follows; whether all of its leukocytes are wanted
# Kind of the reply; whether it is the decoder's last; the fields of Frame; those of Quality; length of what
# follows.
REPLY = struct.Struct("=B?4d?8dI")
# The fields of Frame and Quality, before the content of each of several cells.
MEASURES = struct.Struct("=4d?8d")
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
NOTHING = (0.0, 0.0, 0.0, 0.0, False, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # instead of frame and quality
# Kinds: `content` follows; any number of cells as by `dump` follow; what `describe` returns follows.
CELL, CELLS, DEFECT = 0, 254, 255
MOST_TEXT = 200  # printable ASCII characters of a text that follows: as much as a decoder can tell the client
PACKAGE = Path(app.__file__).parent
FRAME = r"(app/(?:[a-z0-9_]+/)*[a-z0-9_]+\.py):\d{1,4}"  # of a traceback, in a file of ours
MOST_FRAMES = 3
# Kinds 1, 2, 3: the error's detail follows.
ERRORS: tuple[type[LeukoError], ...] = (TooLarge, UnsupportedFormat, UndecodableImage)


@dataclass(frozen=True)
class DecoderConfig:
    """Configuration of a decoder.

    patience_s: time limit for one image, after which the decoder ends.
    max_cells: leukocytes of one image.
    style: describe the style of each cell.
    lives: time limits' worth of processor time after which it is replaced.
    """

    limits: ImageLimits
    preprocessing: Preprocessing
    patience_s: float
    lives: int = 20
    max_cells: int = 256
    style: bool = False

    @property
    def life_s(self) -> float:
        """Return the processor time after which the decoder takes no further image."""
        return self.lives * self.patience_s

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, text: bytes) -> DecoderConfig:
        document = json.loads(text)
        limits, preprocessing = ImageLimits(**document["limits"]), Preprocessing(**document["preprocessing"])
        return cls(**{**document, "limits": limits, "preprocessing": preprocessing})


def main() -> int:
    # The service ends this process by closing the socket: a signal to the whole group would be too early.
    for sig in IGNORED:
        signal.signal(sig, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    small_pydicom.prepare()
    rehearse()
    gc.collect()
    release_memory()
    gc.freeze()  # else garbage collection in the children would write to pages that they share
    size = confinement.address_space()
    devnull = os.open(os.devnull, os.O_WRONLY)
    control = socket.socket(fileno=0)
    confinement.confine_fork_server()
    try:
        control.sendall(READY)
        while True:
            text, descriptors, _, _ = socket.recv_fds(control, CONFIG_BYTES, 1)
            if not text:
                return 0
            connection = socket.socket(fileno=descriptors[0])
            if fork() == 0:
                control.close()
                os.dup2(devnull, 2)  # libtiff prints warnings about broken images
                run(connection, DecoderConfig.load(text), size)
            connection.close()
    except ConnectionError:  # the service has ended without reading READY
        return 0


def fork() -> int | None:
    """Fork this process; return None if it cannot be: the service then sees that its socket is closed."""
    try:
        return os.fork()
    except OSError:
        return None


def run(connection: socket.socket, config: DecoderConfig, size: int) -> NoReturn:
    """Serve as a decoder. size: bytes of the address space that are taken already."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default action interrupts C code too
        own = own_process()
        socket.send_fds(connection, [HELLO], own)
        for descriptor in own:
            os.close(descriptor)
        confinement.confine_decoder(size + config.limits.memory_bytes, config.life_s + config.patience_s)
        connection.sendall(READY)
        serve(connection, config)
        status = 0
    except BrokenPipeError:
        status = 0
    finally:
        os._exit(status)


def own_process() -> list[int]:
    """Return a descriptor of this process (pidfd); none where the kernel has none (Linux before 5.3)."""
    with suppress(AttributeError, OSError):
        return [os.pidfd_open(os.getpid())]
    return []


def rehearse() -> None:
    """Decode an image of each format, so that every import is done before the process may open no file."""
    white = Image.new("RGB", (16, 16), "white")
    for kind in ACCEPTED:
        file = io.BytesIO()
        white.save(file, kind)
        frame_cell(decode(file.getvalue()), Preprocessing())
    for cell in frame_cells(field(), Preprocessing(), most=9):
        describe_style(cell.pixels)
    if dicom.installed():
        for syntax in (*dicom.NATIVE, *dicom.ENCODED):
            decode(dicom_writer.write(white, syntax))


def field() -> Image.Image:
    """Draw what a search for leukocytes meets: red cells, nuclei in touch, lobes and a platelet."""
    y, x = np.mgrid[:96, :96]
    pixels = np.full((96, 96, 3), 235, np.uint8)
    red_cell, nucleus = (210, 150, 160), (95, 60, 170)
    discs = [(15, 15, 10, red_cell), (40, 14, 10, red_cell), (66, 15, 10, red_cell), (14, 80, 10, red_cell)]
    discs += [(40, 50, 10, nucleus), (57, 50, 10, nucleus)]  # in touch
    discs += [(70, 78, 5, nucleus), (82, 78, 5, nucleus), (14, 50, 3, nucleus), (95, 30, 8, nucleus)]
    for across, down, radius, colour in discs:
        pixels[(x - across) ** 2 + (y - down) ** 2 < radius**2] = colour
    return Image.fromarray(pixels)


def serve(connection: socket.socket, config: DecoderConfig) -> None:
    """Reply to each image until the other end closes or the decoder's processor time is used up."""
    last = False
    while not last:
        head = receive(connection, REQUEST.size)
        if not head:
            return
        length, all_cells = REQUEST.unpack(head)
        data = receive(connection, length)
        signal.setitimer(signal.ITIMER_REAL, config.patience_s)
        kind, measures, body = answer(data, config, all_cells=all_cells)
        signal.setitimer(signal.ITIMER_REAL, 0)
        last = time.process_time() > config.life_s
        connection.sendall(REPLY.pack(kind, last, *measures, len(body)))
        connection.sendall(body)


def answer(
    data: bytes, config: DecoderConfig, *, all_cells: bool = False
) -> tuple[int, tuple[float, ...], bytes]:
    """Decode an image and return the reply's kind, the fields of frame and quality, and the body."""
    try:
        image = decode(data, config.limits)
        if all_cells:
            cells = frame_cells(image, config.preprocessing, config.max_cells)
            return CELLS, NOTHING, b"".join(dump(cell, config) for cell in cells)
        cell = frame_cell(image, config.preprocessing)
    except ERRORS as error:
        return 1 + ERRORS.index(type(error)), NOTHING, ascii(error.detail)[1:-1][:MOST_TEXT].encode()
    except MemoryError:
        return 1 + ERRORS.index(TooLarge), NOTHING, NO_MEMORY.encode()
    except Exception as error:  # a defect of ours: the service raises it
        return DEFECT, NOTHING, describe(error)[:MOST_TEXT].encode()
    return CELL, measures_of(cell), content(cell, config)


def measures_of(cell: Cell) -> tuple[float, ...]:
    return (*astuple(cell.frame), *astuple(cell.quality))


def dump(cell: Cell, config: DecoderConfig) -> bytes:
    """Return one of several cells as bytes: MEASURES and content."""
    return MEASURES.pack(*measures_of(cell)) + content(cell, config)


def content(cell: Cell, config: DecoderConfig) -> bytes:
    """Return a cell's pixels as bytes, then the 30 float32 of its style if the config asks for that."""
    return cell.pixels.tobytes() + (describe_style(cell.pixels).tobytes() if config.style else b"")


def describe(error: Exception) -> str:
    """Return the type of a defect and where in our files it was raised, the innermost first.

    No message: it could quote an image. Instead of a type that is not built in, the one that it derives from.
    """
    kind = next(base.__name__ for base in type(error).__mro__ if base.__module__ == "builtins")
    places = [
        f"{path.relative_to(PACKAGE.parent)}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)  # opens no source file
        if (path := Path(frame.f_code.co_filename)).is_relative_to(PACKAGE)
    ]
    return " ".join((kind, *reversed(places[-MOST_FRAMES:])))


def receive(connection: socket.socket, size: int) -> bytes:
    """Return `size` bytes, or b"" if the other end has closed."""
    data = connection.recv(size, socket.MSG_WAITALL)  # all at once, unless a signal interrupts it
    while 0 < len(data) < size:
        rest = connection.recv(size - len(data), socket.MSG_WAITALL)
        data = data + rest if rest else b""
    return data
