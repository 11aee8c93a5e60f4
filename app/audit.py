"""The audit log: one line of JSON for each request, added at the end of a file and never changed."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.errors import StartupError

logger = logging.getLogger(__name__)


class Audit:
    """A file that is moved away, as logrotate does, is begun anew. Lines that it does not take are kept.

    While any is kept, `failing` is true: then no work should be taken, so that what is kept stays bounded.
    """

    def __init__(self, path: Path) -> None:
        """Raises StartupError."""
        self._path = path
        self._kept: list[bytes] = []
        self._complained = False
        try:
            self._file = self._open()
        except OSError as error:
            raise StartupError(f"the audit log {path} cannot be written: {error.strerror}") from None
        self._identity = _identity(os.fstat(self._file))

    @property
    def failing(self) -> bool:
        return bool(self._kept)

    def write(self, entry: Mapping[str, Any]) -> None:
        self._kept.append(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self.retry()

    def retry(self) -> None:
        """Writes what is kept, if that is possible by now."""
        try:
            while self._kept:
                self._follow()
                self._append(self._kept[0])
                del self._kept[0]
        except OSError as error:
            if not self._complained:
                logger.error("the audit log %s cannot be written: %s", self._path, error.strerror)
            self._complained = True
        else:
            self._complained = False

    def close(self) -> None:
        os.close(self._file)

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


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
