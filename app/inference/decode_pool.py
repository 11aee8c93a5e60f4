"""Decode images in separate processes, so that a codec crash is the error of one image."""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import socket
import struct
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread
from typing import TypeVar

import numpy as np

from app import private
from app.errors import NotReady, StartupError, UndecodableImage
from app.imaging.framing import Cell, Frame
from app.imaging.limits import check_bytes
from app.inference.decode_worker import (
    CELL,
    DEFECT,
    ERRORS,
    HELLO,
    MOST_TEXT,
    READY,
    REPLY,
    REQUEST,
    DecoderConfig,
)
from app.inference.threads import Heartbeat

Buffer = TypeVar("Buffer", bytearray, memoryview)

logger = logging.getLogger(__name__)

START_S = 30.0  # for the fork server to import everything
SLICE_S = 1.0  # between two heartbeats while an image is decoded
MARGIN_S = 1.0  # beyond the decoder's own time limit, if it cannot end itself
ATTEMPTS = 2  # a decoder may also be killed for reasons other than its image
RETRY_S = 1.0  # between two attempts to start a decoder while none can be started
END_S = 5.0  # for the fork server to end by itself
TEXTS = (*range(1, 1 + len(ERRORS)), DEFECT)  # kinds of replies that a text follows


class DecoderLost(Exception):
    """A decoder process ended; late: because its image took too long."""

    def __init__(self, *, late: bool) -> None:
        self.late = late


class DecodePool:
    """A pool of decoder processes; any number of threads may use it.

    on_loss: called whenever a decoder was lost and is replaced.
    fork_server: default: the one that all pools of this process share.
    """

    def __init__(
        self,
        count: int,
        config: DecoderConfig,
        on_loss: Callable[[], object] = lambda: None,
        fork_server: ForkServer | None = None,
    ) -> None:
        self._count = count
        self._config = config
        self._on_loss = on_loss
        self._fork_server = fork_server or _fork_server
        self._closed = Event()
        self._wanted = Event()  # a decoder could not be started
        self._obstacle: str | None = None
        self._idle: deque[Decoder] = deque()

    def open(self) -> None:
        """Start all decoders; the pool may be closed meanwhile. Raise StartupError."""
        # Started now: where no process can be started, no thread can be either.
        Thread(target=self._restore, name="decoders", daemon=True).start()
        for _ in range(self._count):
            self._return(self._fork_server.start_decoder(self._config))

    @property
    def obstacle(self) -> str | None:
        """Return why no decoder can be started, or None if the last attempt succeeded."""
        return self._obstacle

    def frame(self, data: bytes, heartbeat: Heartbeat = lambda: None) -> Cell:
        """Decode an image and crop it to its cell; raise what `decode` and `frame_cell` raise.

        Raise UndecodableImage also when the image crashes its decoder twice or takes longer than the config's
        time limit, and NotReady when no decoder can be started. heartbeat: called at least every SLICE_S.
        """
        check_bytes(data, self._config.limits)
        for _ in range(ATTEMPTS):
            decoder = self._take()
            try:
                cell = decoder.frame(data, heartbeat)
            except DecoderLost as lost:
                logger.error("replacing a decoder that %s", "took too long" if lost.late else "ended")
                self._on_loss()
                self._replace(decoder)
                if lost.late:
                    seconds = self._config.patience_s
                    raise UndecodableImage(f"the image takes longer than {seconds:g} s to decode") from None
            except BaseException:
                self._put_back(decoder)
                raise
            else:
                self._put_back(decoder)
                return cell
        raise UndecodableImage("the image crashes its decoder")

    def close(self) -> None:
        """End all decoders; busy ones end after their image."""
        self._closed.set()
        self._wanted.set()
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Decoder:
        try:
            return self._idle.pop()
        except IndexError:
            return self._start()

    def _put_back(self, decoder: Decoder) -> None:
        """Keep a decoder for the next image, or replace it if that was its last."""
        if decoder.ended:
            self._replace(decoder)
        else:
            self._return(decoder)

    def _replace(self, decoder: Decoder) -> None:
        decoder.close()
        with suppress(NotReady):  # an image that finds no decoder fails with it
            self._return(self._start())

    def _start(self) -> Decoder:
        """Start a decoder. Raise NotReady; then `_restore` tries again until it succeeds."""
        try:
            decoder = self._fork_server.start_decoder(self._config)
        except StartupError as error:
            if self._obstacle is None:
                logger.error("%s; trying again every %g s", error.detail, RETRY_S)
            self._obstacle = error.detail
            self._wanted.set()
            raise NotReady(error.detail) from error
        if self._obstacle is not None:
            logger.warning("decoder processes can be started again")
        self._obstacle = None
        return decoder

    def _restore(self) -> None:
        """Start decoders in place of those that could not be started, until the pool is closed."""
        while True:
            self._wanted.wait()
            if self._closed.is_set():
                return
            self._wanted.clear()
            with suppress(NotReady):
                self._return(self._start())
                continue
            self._closed.wait(RETRY_S)

    def _return(self, decoder: Decoder) -> None:
        self._idle.append(decoder)
        if self._closed.is_set():
            self.close()


class Decoder:
    """One decoder process, reached through its socket; for one thread at a time.

    process: descriptor of the process (pidfd), None where the kernel has none.
    """

    def __init__(self, connection: socket.socket, process: int | None, config: DecoderConfig) -> None:
        self.ended = False  # it serves no further image
        self._connection = connection
        self._process = process
        self._size = config.preprocessing.size
        self._patience_s = config.patience_s
        # Blocking, with the kernel's timeouts: a reply then wakes this thread once, not once per piece.
        for option, seconds in (
            (socket.SO_RCVTIMEO, min(SLICE_S, self._patience_s / 4)),
            (socket.SO_SNDTIMEO, self._patience_s),
        ):
            connection.setsockopt(socket.SOL_SOCKET, option, _timeval(seconds))

    def frame(self, data: bytes, heartbeat: Heartbeat) -> Cell:
        """Decode and crop an image; raise DecoderLost, or what `decode` and `frame_cell` raise.

        The reply may come from somebody who has taken the decoder over.
        """
        began = time.monotonic()
        until = began + self._patience_s + MARGIN_S
        try:
            self._send(data)
            head = self._receive(bytearray(REPLY.size), until, heartbeat)
            kind, self.ended, left, top, width, height, nucleus, length = REPLY.unpack(head)
            if kind == CELL and all(map(math.isfinite, (left, top, width, height))):
                pixels = np.empty((self._size, self._size, 3), np.uint8)
                self._receive(pixels.data.cast("B"), until, heartbeat)
                return Cell(pixels, Frame(left, top, width, height, nucleus))
            if kind not in TEXTS or length > MOST_TEXT:
                raise EOFError("no reply of ours")
            text = self._receive(bytearray(length), until, heartbeat).decode()
        except (OSError, EOFError, UnicodeDecodeError):
            raise DecoderLost(late=time.monotonic() - began > self._patience_s) from None
        if kind == DEFECT:
            raise RuntimeError(text)
        raise ERRORS[kind - 1](text)

    def _send(self, data: bytes) -> None:
        head = REQUEST.pack(len(data))
        sent = self._connection.sendmsg([head, data])  # without a copy of the image
        if sent < len(head) + len(data):
            self._connection.sendall(memoryview(data)[sent - len(head) :])

    def _receive(self, into: Buffer, until: float, heartbeat: Heartbeat) -> Buffer:
        view, done = memoryview(into), 0
        while done < len(view):
            with suppress(BlockingIOError):
                received = self._connection.recv_into(view[done:], 0, socket.MSG_WAITALL)
                if not received:
                    raise EOFError
                done += received
                if done == len(view):
                    break
            if time.monotonic() > until:
                raise TimeoutError
            heartbeat()
        return into

    def close(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            os.close(self._process)
            self._process = None


class ForkServer:
    """The process that forks decoders; started when first needed, and again if it ended."""

    def __init__(self, command: Sequence[str] = ()) -> None:
        self._command = command or private.command("app.inference.decode_worker")
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Start the process, if it does not run. Raise StartupError."""
        with self._lock, self._starting():
            if self._control is None:
                self._start()

    def start_decoder(self, config: DecoderConfig) -> Decoder:
        """Fork a decoder. Raise StartupError."""
        with self._lock, self._starting():
            if self._control is not None:
                with suppress(OSError, EOFError):
                    return self._fork(self._control, config)
                self._end()
            return self._fork(self._start(), config)

    @contextmanager
    def _starting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError) as error:
            self._end()
            raise StartupError(f"no decoder process can be started: {error}") from error

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                self._command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=private.environment(OPENBLAS_NUM_THREADS="1"),
                start_new_session=True,
            )
        self._control = ours
        _await(ours, READY)
        atexit.unregister(self._end)  # of an earlier process
        atexit.register(self._end)
        return ours

    def _fork(self, control: socket.socket, config: DecoderConfig) -> Decoder:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(control, [config.dump()], [theirs.fileno()])
            descriptors = _await(ours, HELLO)
            decoder = Decoder(ours, descriptors[0] if descriptors else None, config)
        except BaseException:
            ours.close()
            raise
        try:
            _await(ours, READY)
        except BaseException:
            decoder.close()
            raise
        return decoder

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:  # it is stopped, or stuck while it starts
                self._process.kill()
                self._process.wait()
            self._process = None


def _await(connection: socket.socket, message: bytes) -> list[int]:
    """Wait for a message of a process that starts; return its descriptors. Raise OSError or EOFError."""
    connection.settimeout(START_S)
    received, descriptors, _, _ = socket.recv_fds(connection, len(message), 1)
    if received != message:
        raise EOFError("the process ended at once")
    connection.settimeout(None)
    return descriptors


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))


_fork_server = ForkServer()
prepare = _fork_server.start  # importing the codecs takes a second: call it while the model loads
