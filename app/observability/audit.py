"""The audit log: one line of JSON per request, appended to a file and never changed."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from app.errors import StartupError

logger = logging.getLogger(__name__)

MAX_PENDING = 10_000  # lines kept in memory


class AuditLog:
    """Append entries to a file, and create the file again after logrotate has moved it.

    Lines that cannot be written are kept in memory; while there are any, `failing` is true and the service
    should refuse work. Beyond MAX_PENDING lines, which are refusals by then, only their number is kept: it is
    written as `{"lost": number}` after the pending lines.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raise StartupError if that fails."""
        self._path = path
        self._pending: deque[bytes] = deque()
        self._lost = 0
        self._reported = False
        self._lock = Lock()  # the event loop writes; the thread that renders the metrics retries
        try:
            self._file = self._open()
        except OSError as error:
            raise StartupError(f"the audit log {path} cannot be written: {error.strerror}") from None
        self._identity = _identity(os.fstat(self._file))

    @property
    def failing(self) -> bool:
        with self._lock:  # otherwise a line that is just being written would count as failed
            return bool(self._pending)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append an entry, or keep it until a later write or `retry` succeeds."""
        with self._lock:
            if len(self._pending) < MAX_PENDING:
                self._pending.append(_line(entry))
            else:
                self._lost += 1
            self._retry()

    def retry(self) -> None:
        """Write the pending lines, if possible."""
        with self._lock:
            self._retry()

    def close(self) -> None:
        with self._lock:
            os.close(self._file)

    def _retry(self) -> None:
        try:
            while self._pending:
                self._reopen_if_moved()
                self._append(self._pending[0])
                self._pending.popleft()
                if self._lost and not self._pending:
                    self._pending.append(_line({"lost": self._lost}))
                    self._lost = 0
        except OSError as error:
            if not self._reported:
                logger.error("the audit log %s cannot be written: %s", self._path, error.strerror)
            self._reported = True
        else:
            self._reported = False

    def _append(self, line: bytes) -> None:
        # In one call, so that the lines of several processes do not interleave.
        written = os.write(self._file, line)
        if written < len(line):
            self._pending[0] = b"\n" + line.lstrip()  # ends the partial line, then repeats it whole
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _reopen_if_moved(self) -> None:
        with suppress(FileNotFoundError):
            if _identity(self._path.stat()) == self._identity:
                return
        file = self._open()
        os.close(self._file)
        self._file, self._identity = file, _identity(os.fstat(file))

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
