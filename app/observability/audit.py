"""The audit log: lines of JSON about requests, appended to a file by a thread and never changed."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from app.errors import StartupError
from app.regular_file import open_regular

logger = logging.getLogger(__name__)

MAX_PENDING = 10_000  # lines kept in memory
MAX_PENDING_BYTES = 2**24  # likewise
MAX_WRITE = 2**16  # bytes of one write that has several lines
PATIENCE_S = 5.0  # how long a line may wait for the disk, and `close` for all lines
RETRY_S = 0.25  # between two attempts after an error

Write = Callable[[int, bytes], int]


def _write(file: int, data: bytes) -> int:
    return os.write(file, data)


def _nothing() -> None:
    pass


class AuditLog:
    """Append entries to a file, and create the file again after logrotate has moved it.

    `write` only queues a line. A thread writes, so a disk that does not respond holds up nothing else.
    `failing` is true from the first error, from a line that has waited for patience_s, or from half of
    MAX_PENDING or MAX_PENDING_BYTES on: the service should refuse work until the disk has caught up. Of
    lines beyond the limits, which are refusals by then, only the number is kept: it is written as
    `{"lost": number}` after the pending lines.

    on_moved: called by the thread after it has found the file moved.
    """

    def __init__(
        self,
        path: Path,
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        write: Write | None = None,
    ) -> None:
        """Open or create the file. Raise StartupError if that fails. clock, write: fakes in tests."""
        self.on_moved: Callable[[], object] = _nothing
        self._path = path
        self._patience_s = patience_s
        self._clock = clock
        self._os_write = write or _write
        self._pending: deque[tuple[float, bytes]] = deque()  # with the time when each line was queued
        self._bytes = 0  # of the pending lines
        self._lost = 0
        self._error = False  # the last attempt to write has failed
        self._reported = False
        self._closing = False
        self._last_attempt = False  # begun after `close` was called
        self._changed = Condition()  # guards what is above; never held while the file is used
        self._thread: Thread | None = None
        try:
            self._file = self._open()
        except OSError as error:
            raise StartupError(f"the audit log {path} cannot be written: {error.strerror}") from None
        self._identity = _identity(os.fstat(self._file))

    @property
    def failing(self) -> bool:
        with self._changed:
            if not self._pending:
                return False
            waited = self._clock() - self._pending[0][0]
            full = 2 * len(self._pending) > MAX_PENDING or 2 * self._bytes > MAX_PENDING_BYTES
            failing = self._error or waited > self._patience_s or full
        if failing:
            self._report(f"the disk has not taken a line for {waited:.1f} s")
        return failing

    def write(self, entry: Mapping[str, Any]) -> None:
        """Queue an entry, to be written at once or as soon as the disk accepts it."""
        line = _line(entry)
        with self._changed:
            full = len(self._pending) >= MAX_PENDING or self._bytes + len(line) > MAX_PENDING_BYTES
            if full or self._closing:
                self._lost += 1
            else:
                self._push(line)
            if self._thread is None and not self._closing:
                self._thread = Thread(target=self._serve, name="audit", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        if self._closing:
            logger.error("the audit log %s is closed: a request has no line", self._path)

    def close(self) -> None:
        """Wait for the disk for at most patience_s; log the number of lines that it has not taken."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(self._patience_s)
        with self._changed:
            lost = self._lost + len(self._pending)
        if lost:
            logger.error("the audit log %s ends without its last %d lines", self._path, lost)
        if self._thread is None or not self._thread.is_alive():
            os.close(self._file)

    def _serve(self) -> None:
        while lines := self._next():
            try:
                moved = self._reopen_if_moved()
                # In one call, so that the lines of several processes do not interleave.
                self._drop(lines, self._os_write(self._file, lines))
            except OSError as error:
                self._error = True
                self._report(error.strerror or str(error))
            else:
                if moved and not self._closing:
                    self.on_moved()

    def _next(self) -> bytes:
        """Wait for lines and return as many as go into one write; none at the end."""
        with self._changed:
            if self._error:
                if self._last_attempt:
                    return b""
                self._changed.wait_for(lambda: self._closing, RETRY_S)
            self._changed.wait_for(lambda: self._pending or self._closing)
            self._last_attempt = self._closing
            lines: list[bytes] = []
            size = 0
            for _, line in self._pending:
                size += len(line)
                if lines and size > MAX_WRITE:
                    break
                lines.append(line)
        return b"".join(lines)

    def _drop(self, lines: bytes, written: int) -> None:
        """Forget the lines that are written. Raise OSError if these are not all."""
        left = written
        with self._changed:
            self._error = written < len(lines)
            while self._pending and len(self._pending[0][1]) <= left:
                left -= len(self._pop())
            if left:
                line = self._pop()
                self._push(b"\n" + line.lstrip(), first=True)  # ends the partial line, then repeats it whole
            if not self._pending:
                self._reported = False
                if self._lost:
                    self._push(_line({"lost": self._lost}))
                    self._lost = 0
        if written < len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _push(self, line: bytes, *, first: bool = False) -> None:
        (self._pending.appendleft if first else self._pending.append)((self._clock(), line))
        self._bytes += len(line)

    def _pop(self) -> bytes:
        _, line = self._pending.popleft()
        self._bytes -= len(line)
        return line

    def _report(self, reason: str) -> None:
        """Log once until all lines are written again."""
        if not self._reported:
            self._reported = True
            logger.error("the audit log %s cannot be written: %s", self._path, reason)

    def _reopen_if_moved(self) -> bool:
        try:
            if _identity(self._path.lstat()) == self._identity:
                return False
        except FileNotFoundError:
            pass
        file = self._open()
        os.close(self._file)
        self._file, self._identity = file, _identity(os.fstat(file))
        return True

    def _open(self) -> int:
        return open_regular(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
