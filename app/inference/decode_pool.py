"""Pictures to cells in processes of their own, so that a decoder's crash is one picture's error."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import TypeVar

import numpy as np

from app.errors import StartupError, UndecodableImage
from app.imaging.framing import Cell, Frame
from app.imaging.limits import check_bytes
from app.inference.decode_worker import CELL, DEFECT, ERRORS, READY, REPLY, REQUEST, DecoderConfig
from app.inference.threads import Heartbeat

Buffer = TypeVar("Buffer", bytearray, memoryview)

logger = logging.getLogger(__name__)

START_S = 30.0  # until the process that forks has imported everything
SLICE_S = 1.0  # between two signs of life while a picture is decoded
MARGIN_S = 1.0  # beyond its patience, for a decoder that cannot even end itself
ATTEMPTS = 2  # a decoder may be killed by what has nothing to do with its picture


class Lost(Exception):
    """A decoder is gone; late: because its picture took too long."""

    def __init__(self, *, late: bool) -> None:
        self.late = late


class Decoders:
    """As many processes as may decode at a time; any number of threads may call.

    on_loss: called whenever one is replaced.
    """

    def __init__(
        self, count: int, config: DecoderConfig, on_loss: Callable[[], object] = lambda: None
    ) -> None:
        self._count = count
        self._config = config
        self._on_loss = on_loss
        self._closed = False
        self._idle: deque[Decoder] = deque()

    def open(self) -> None:
        """Raises StartupError. It may be closed meanwhile."""
        for _ in range(self._count):
            self._return(_forking.decoder(self._config))

    def frame(self, data: bytes, heartbeat: Heartbeat = lambda: None) -> Cell:
        """What `decode` and `frame_cell` make of it; raises what they raise.

        UndecodableImage also where the picture ends its decoder, or takes longer than its patience.
        heartbeat: called at least every SLICE_S.
        """
        check_bytes(data, self._config.limits)
        for _ in range(ATTEMPTS):
            decoder = self._idle.pop() if self._idle else _forking.decoder(self._config)
            try:
                return decoder.frame(data, heartbeat)
            except Lost as lost:
                logger.error("a decoder %s and is replaced", "took too long" if lost.late else "ended")
                self._on_loss()
                decoder.close()
                decoder = _forking.decoder(self._config)
                if lost.late:
                    patience_s = self._config.patience_s
                    raise UndecodableImage(
                        f"the image takes longer than {patience_s:g} s to decode"
                    ) from None
            finally:
                self._return(decoder)
        raise UndecodableImage("the image ends its decoder")

    def close(self) -> None:
        """Ends them, those that are at work as soon as they are done."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _return(self, decoder: Decoder) -> None:
        self._idle.append(decoder)
        if self._closed:
            self.close()


class Decoder:
    """One process, by its socket; for one thread at a time."""

    def __init__(self, connection: socket.socket, config: DecoderConfig) -> None:
        self._connection = connection
        self._size = config.preprocessing.size
        self._patience_s = config.patience_s
        # Blocking, with the kernel's own timeouts: then an answer wakes this thread once, not once a piece.
        for option, seconds in (
            (socket.SO_RCVTIMEO, min(SLICE_S, self._patience_s / 4)),
            (socket.SO_SNDTIMEO, self._patience_s),
        ):
            connection.setsockopt(socket.SOL_SOCKET, option, _timeval(seconds))

    def frame(self, data: bytes, heartbeat: Heartbeat) -> Cell:
        """Raises Lost, and what `decode` raises."""
        began = time.monotonic()
        until = began + self._patience_s + MARGIN_S
        try:
            self._connection.sendall(REQUEST.pack(len(data)) + data)
            head = self._receive(bytearray(REPLY.size), until, heartbeat)
            kind, left, top, width, height, nucleus, length = REPLY.unpack(head)
            if kind == CELL:
                pixels = np.empty((self._size, self._size, 3), np.uint8)
                self._receive(pixels.data.cast("B"), until, heartbeat)
                return Cell(pixels, Frame(left, top, width, height, nucleus))
            words = self._receive(bytearray(length), until, heartbeat).decode()
        except (OSError, EOFError):
            raise Lost(late=time.monotonic() - began > self._patience_s) from None
        if kind == DEFECT:
            raise RuntimeError(words)
        raise ERRORS[kind - 1](words)

    def _receive(self, into: Buffer, until: float, heartbeat: Heartbeat) -> Buffer:
        view, done = memoryview(into), 0
        while done < len(view):
            try:
                got = self._connection.recv_into(view[done:], 0, socket.MSG_WAITALL)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                heartbeat()
            else:
                if not got:
                    raise EOFError
                done += got
        return into

    def close(self) -> None:
        self._connection.close()


class ForkServer:
    """The process that forks decoders; started when it is first wanted, and again should it end."""

    def __init__(
        self, command: Sequence[str] = (sys.executable, "-m", "app.inference.decode_worker")
    ) -> None:
        self._command = command
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Raises StartupError."""
        with self._lock, self._starting():
            if self._control is None:
                self._start()

    def decoder(self, config: DecoderConfig) -> Decoder:
        """Raises StartupError."""
        with self._lock, self._starting():
            if self._control is not None:
                with suppress(OSError, EOFError):
                    return Decoder(self._fork(self._control, config), config)
                self._end()
            return Decoder(self._fork(self._start(), config), config)

    @contextmanager
    def _starting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError) as error:
            self._end()
            raise StartupError(f"no decoder can be started: {error!r}") from error

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                self._command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self._control = ours
        _await(ours)
        atexit.register(self._end)
        return ours

    def _fork(self, control: socket.socket, config: DecoderConfig) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(control, [config.dump()], [theirs.fileno()])
        _await(ours)
        return ours

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.wait()
            self._process = None


def _await(connection: socket.socket) -> None:
    """The other end is ready; raises OSError or EOFError."""
    connection.settimeout(START_S)
    if connection.recv(len(READY)) != READY:
        raise EOFError("it ended at once")
    connection.settimeout(None)


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))


_forking = ForkServer()
prepare = _forking.start  # it imports codecs for a second, which may be while something else loads
