"""Decode images in separate processes, so that a codec crash is the error of one image."""

from __future__ import annotations

import builtins
import logging
import math
import re
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Condition, Lock, Thread
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from app.errors import NotReady, StartupError, UndecodableImage
from app.imaging.framing import Cell, Frame
from app.imaging.limits import check_bytes
from app.imaging.quality import Quality
from app.imaging.style import LENGTH
from app.inference.decode_worker import (
    CELL,
    CELLS,
    DEFECT,
    ERRORS,
    FRAME,
    MEASURES,
    MOST_FRAMES,
    MOST_TEXT,
    PACKAGE,
    REPLY,
    REQUEST,
    DecoderConfig,
)
from app.inference.fork_server import ForkServer, end, shared
from app.inference.threads import Heartbeat

Framed = TypeVar("Framed", Cell, list[Cell])

logger = logging.getLogger(__name__)

SLICE_S = 1.0  # between two heartbeats while an image is decoded or waits for a decoder
MARGIN_S = 1.0  # beyond the decoder's own time limit, if it cannot end itself
ATTEMPTS = 2  # a decoder may also be killed for reasons other than its image
RETRY_S = 1.0  # between two attempts to start a decoder while none can be started
WAIT_S = 8.0  # of an image for a decoder; a fork server starts in 1 or 2
STYLE_BYTES = 4 * LENGTH
TEXTS = (*range(1, 1 + len(ERRORS)), DEFECT)  # kinds of replies that a text follows


class DecoderLost(Exception):
    """A decoder process ended; late: because its image took too long."""

    def __init__(self, *, late: bool) -> None:
        self.late = late


class DecoderFailed(RuntimeError):
    """A decoder met a defect of ours, or says so. Its text cannot carry what the decoder has seen."""


class DecodePool:
    """A pool of decoder processes; any number of threads may use it.

    A thread that frames images never starts a decoder, which can take long or get stuck: `_restore` does.

    on_loss: called whenever a decoder was lost and is replaced.
    fork_server: default: the one that all pools of this process share.
    wait_s: how long an image waits for a decoder.
    """

    def __init__(
        self,
        count: int,
        config: DecoderConfig,
        on_loss: Callable[[], object] = lambda: None,
        fork_server: ForkServer | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        self._count = count
        self._config = config
        self._on_loss = on_loss
        self._fork_server = fork_server or shared
        self._wait_s = wait_s
        self._idle: deque[Decoder] = deque()
        lock = Lock()  # of what follows
        self._changed = Condition(lock)  # a decoder is idle, an obstacle was met, or the pool was closed
        self._wanted = Condition(lock)  # a decoder is missing, or the pool was closed
        self._missing = 0  # decoders to start
        self._waiting = 0  # threads that wait for one
        self._obstacle: str | None = None
        self._closed = False

    def open(self) -> None:
        """Start all decoders; the pool may be closed meanwhile. Raise StartupError."""
        # Started now: where no process can be started, no thread can be either.
        Thread(target=self._restore, name="decoders", daemon=True).start()
        for _ in range(self._count):
            self._return(self._start())

    @property
    def obstacle(self) -> str | None:
        """Return why no decoder can be started, or None if the last attempt succeeded."""
        return self._obstacle

    def frame(self, data: bytes, heartbeat: Heartbeat = lambda: None) -> Cell:
        """Decode an image and crop it to its cell; raise what `decode` and `frame_cell` raise.

        Raise UndecodableImage also when the image crashes its decoder twice or takes longer than the config's
        time limit, NotReady when no decoder can be started, and DecoderFailed. heartbeat: called at least
        every SLICE_S.
        """
        return self._ask(data, heartbeat, lambda decoder: decoder.frame(data, heartbeat))

    def frame_all(self, data: bytes, heartbeat: Heartbeat = lambda: None) -> list[Cell]:
        """Decode an image and crop it to each of its leukocytes, in reading order; raise what `frame` raises.

        Raise TooLarge if there are more of them than the config allows.
        """
        return self._ask(data, heartbeat, lambda decoder: decoder.frame_all(data, heartbeat))

    def _ask(self, data: bytes, heartbeat: Heartbeat, ask: Callable[[Decoder], Framed]) -> Framed:
        check_bytes(data, self._config.limits)
        for _ in range(ATTEMPTS):
            decoder = self._take(heartbeat)
            try:
                framed = ask(decoder)
            except DecoderLost as lost:
                self._lose(decoder, "took too long" if lost.late else "ended")
                if lost.late:
                    seconds = self._config.patience_s
                    raise UndecodableImage(f"the image takes longer than {seconds:g} s to decode") from None
            except ERRORS:
                self._put_back(decoder)
                raise
            except BaseException:  # also DecoderFailed; else its reply may be still to come
                self._lose(decoder, "failed")
                raise
            else:
                self._put_back(decoder)
                return framed
        raise UndecodableImage("the image crashes its decoder")

    def close(self) -> None:
        """End all decoders; busy ones end after their image."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._wanted.notify_all()
        with suppress(IndexError):  # other threads take decoders meanwhile
            while True:
                self._idle.pop().close()

    def _take(self, heartbeat: Heartbeat) -> Decoder:
        try:
            return self._idle.pop()
        except IndexError:
            return self._wait(heartbeat)

    def _wait(self, heartbeat: Heartbeat) -> Decoder:
        """Wait until a decoder is idle. Raise NotReady after wait_s, or if none can be started."""
        until = time.monotonic() + self._wait_s
        with self._changed:
            self._waiting += 1
            self._want(max(self._missing, self._waiting))
        try:
            while True:
                with self._changed:
                    with suppress(IndexError):
                        return self._idle.pop()
                    if self._closed:
                        raise NotReady("the decoders have been ended")
                    if time.monotonic() > until:
                        self._meet(f"no decoder process can be started: none within {self._wait_s:g} s")
                    if self._obstacle is not None:
                        raise NotReady(self._obstacle)
                    self._changed.wait(_slice_s(self._config))
                heartbeat()
        finally:
            with self._changed:
                self._waiting -= 1

    def _put_back(self, decoder: Decoder) -> None:
        """Keep a decoder for the next image, or replace it if that was its last."""
        if decoder.ended:
            self._replace(decoder)
        else:
            self._return(decoder)

    def _lose(self, decoder: Decoder, what: str) -> None:
        logger.error("replacing a decoder that %s", what)
        self._on_loss()
        self._replace(decoder)

    def _replace(self, decoder: Decoder) -> None:
        decoder.close()
        with self._wanted:
            self._want(self._missing + 1)

    def _want(self, missing: int) -> None:
        """Have `_restore` start decoders; call with the lock held."""
        self._missing = missing
        self._wanted.notify()

    def _meet(self, obstacle: str) -> None:
        """Note why no decoder can be started, until `_restore` has started one; call with the lock held."""
        if self._obstacle is None:
            logger.error("%s; trying again every %g s", obstacle, RETRY_S)
        self._obstacle = obstacle
        self._changed.notify_all()

    def _restore(self) -> None:
        """Start the decoders that are missing, until the pool is closed."""
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._missing or self._closed)
                if self._closed:
                    return
            try:
                decoder = self._start()
            except StartupError as error:
                with self._wanted:
                    self._meet(error.detail)
                    self._wanted.wait_for(lambda: self._closed, RETRY_S)
                continue
            with self._wanted:
                self._missing -= 1
                if self._obstacle is not None:
                    logger.warning("decoder processes can be started again")
                self._obstacle = None
            self._return(decoder)

    def _start(self) -> Decoder:
        """Start a decoder. Raise StartupError."""
        return Decoder(*self._fork_server.fork(self._config.dump()), self._config)

    def _return(self, decoder: Decoder) -> None:
        with self._changed:
            self._idle.append(decoder)
            self._changed.notify()
        if self._closed:
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
        self._content_bytes = 3 * self._size**2 + STYLE_BYTES * config.style
        self._max_cells = config.max_cells
        self._patience_s = config.patience_s
        self._slice_s = _slice_s(config)
        # Blocking, with the kernel's timeout: a reply then wakes this thread once, not once per piece.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(self._slice_s))

    def frame(self, data: bytes, heartbeat: Heartbeat) -> Cell:
        """Decode and crop an image; raise what `decode` and `frame_cell` raise, DecoderLost or DecoderFailed.

        The reply may come from somebody who has taken the decoder over.
        """
        [cell] = self._request(data, heartbeat, all_cells=False)
        return cell

    def frame_all(self, data: bytes, heartbeat: Heartbeat) -> list[Cell]:
        """Decode an image and crop it to each of its leukocytes; raise what `frame` raises."""
        return self._request(data, heartbeat, all_cells=True)

    def _request(self, data: bytes, heartbeat: Heartbeat, *, all_cells: bool) -> list[Cell]:
        began = time.monotonic()
        until = began + self._patience_s + MARGIN_S
        try:
            self._send(data, all_cells, until, heartbeat)
            head = self._receive(bytearray(REPLY.size), until, heartbeat)
            kind, self.ended, *measures, length = REPLY.unpack(head)
            _check_finite(measures)
            if kind == CELL and not all_cells:
                content = self._receive(bytearray(self._content_bytes), until, heartbeat)
                return [self._cell(np.frombuffer(content, np.uint8), measures)]
            if kind == CELLS and all_cells and length <= self._max_cells * self._cell_bytes:
                return self._unpack(self._receive(bytearray(length), until, heartbeat))
            if kind not in TEXTS or length > MOST_TEXT:
                raise EOFError("no reply of ours")
            text = self._receive(bytearray(length), until, heartbeat).decode("ascii")
            if not text.isprintable():
                raise EOFError("no text of ours")
        except (OSError, EOFError, UnicodeDecodeError):
            raise DecoderLost(late=time.monotonic() - began > self._patience_s) from None
        if kind == DEFECT:
            raise DecoderFailed(_checked(text))
        raise ERRORS[kind - 1](text)

    @property
    def _cell_bytes(self) -> int:
        """Return the bytes of one of several cells."""
        return MEASURES.size + self._content_bytes

    def _unpack(self, body: bytearray) -> list[Cell]:
        """Return what `decode_worker.dump` made of cells. Raise EOFError if it is not that."""
        count, rest = divmod(len(body), self._cell_bytes)
        if rest:
            raise EOFError("no cells of ours")
        rows = np.frombuffer(body, np.uint8).reshape(count, self._cell_bytes)
        return [self._cell(row[MEASURES.size :], MEASURES.unpack_from(row.data)) for row in rows]

    def _cell(self, content: NDArray[np.uint8], measures: Sequence[float]) -> Cell:
        """Return a cell. measures: the fields of Frame and Quality. Raise EOFError if they cannot be it."""
        pixels, rest = content[: 3 * self._size**2], content[3 * self._size**2 :]
        style = np.frombuffer(rest.tobytes(), np.float32) if len(rest) else None
        _check_finite(measures if style is None else [*measures, *style])
        left, top, width, height, nucleus, *quality = measures
        frame = Frame(left, top, width, height, bool(nucleus))
        return Cell(pixels.reshape(self._size, self._size, 3), frame, Quality(*quality), style=style)

    def _send(self, data: bytes, all_cells: bool, until: float, heartbeat: Heartbeat) -> None:
        """Send an image, however slowly it is read. Raise TimeoutError.

        Not with SO_SNDTIMEO: the kernel applies it anew to each piece of the image.
        """
        head = REQUEST.pack(len(data), all_cells)
        sent = self._connection.sendmsg([head, data], (), socket.MSG_DONTWAIT)  # without a copy of the image
        if sent == len(head) + len(data):
            return
        rest = memoryview(data)[sent - len(head) :]
        writable = select.poll()
        writable.register(self._connection, select.POLLOUT)
        while rest:
            writable.poll(math.ceil(self._slice_s * 1000))
            with suppress(BlockingIOError):
                rest = rest[self._connection.send(rest, socket.MSG_DONTWAIT) :]
            if time.monotonic() > until:
                raise TimeoutError
            heartbeat()

    def _receive(self, into: bytearray, until: float, heartbeat: Heartbeat) -> bytearray:
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
            end(self._process)
            self._process = None


def _check_finite(measures: Sequence[float]) -> None:
    """Raise EOFError if these cannot be measures of a decoder of ours."""
    if not all(map(math.isfinite, measures)):
        raise EOFError("no measures of ours")


def _slice_s(config: DecoderConfig) -> float:
    """Return the seconds between two heartbeats: the watchdog may wait as little as the time limit."""
    return min(SLICE_S, config.patience_s / 4)


def _checked(text: str) -> str:
    """Return what `decode_worker.describe` says of a defect if it can be true, else "unknown".

    Whoever has taken the decoder over could spell the images of others with names of his own.
    """
    name, *frames = text.split(" ")
    kind = getattr(builtins, name, None)
    known = isinstance(kind, type) and issubclass(kind, BaseException) and len(frames) <= MOST_FRAMES
    return text if known and all(map(_is_ours, frames)) else "unknown"


def _is_ours(frame: str) -> bool:
    found = re.fullmatch(FRAME, frame)
    return found is not None and (PACKAGE.parent / found[1]).is_file()


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
