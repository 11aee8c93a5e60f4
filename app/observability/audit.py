"""The audit log: one line of JSON for each request, added at the end of a file and never changed."""

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

MOST_KEPT = 10_000


class AuditLog:
    """A file that is moved away, as logrotate does, is begun anew. Lines that it does not take are kept.

    While any is kept, `failing` is true: then no work should be taken. Of MOST_KEPT lines and more, refusals
    all of them, only the number is kept, and written in the end.
    """

    def __init__(self, path: Path) -> None:
        """Raises StartupError."""
        self._path = path
        self._kept: deque[bytes] = deque()
        self._lost = 0
        self._complained = False
        self._lock = Lock()  # the event loop writes; rendering the metrics, on a thread, tries again
        try:
            self._file = self._open()
        except OSError as error:
            raise StartupError(f"the audit log {path} cannot be written: {error.strerror}") from None
        self._identity = _identity(os.fstat(self._file))

    @property
    def failing(self) -> bool:
        with self._lock:  # or a line that is being written would look like one that cannot be
            return bool(self._kept)

    def write(self, entry: Mapping[str, Any]) -> None:
        with self._lock:
            if len(self._kept) < MOST_KEPT:
                self._kept.append(_line(entry))
            else:
                self._lost += 1
            self._retry()

    def retry(self) -> None:
        """Writes what is kept, if that is possible by now."""
        with self._lock:
            self._retry()

    def close(self) -> None:
        with self._lock:
            os.close(self._file)

    def _retry(self) -> None:
        try:
            while self._kept:
                self._follow()
                self._append(self._kept[0])
                self._kept.popleft()
                if self._lost and not self._kept:
                    self._kept.append(_line({"lost": self._lost}))
                    self._lost = 0
        except OSError as error:
            if not self._complained:
                logger.error("the audit log %s cannot be written: %s", self._path, error.strerror)
            self._complained = True
        else:
            self._complained = False

    def _append(self, line: bytes) -> None:
        # In one call, so that lines of several processes never mix.
        written = os.write(self._file, line)
        if written < len(line):
            self._kept[0] = b"\n" + line.lstrip()  # what was begun ends there, and is written again
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _follow(self) -> None:
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
