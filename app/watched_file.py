"""A text file that is read again after it has changed."""

from __future__ import annotations

import os
from pathlib import Path

from app.errors import SettingsError
from app.regular_file import open_trusted
from app.units import MIB

MOST_BYTES = MIB  # thousands of keys; reading and parsing more would delay requests
Version = tuple[int, int, int, int]


class WatchedFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._version: Version | None = None

    @property
    def changed(self) -> bool:
        """Return whether times, inode or size differ from those at the last `read`. Raise OSError.

        After an OSError, here or in `read`, the file counts as changed: it may be back as it was before.
        """
        version, self._version = self._version, None
        current = _version(self.path.stat())
        self._version = version
        return version != current

    def read(self) -> str:
        """Return the content. Raise OSError, UnicodeDecodeError, or, over MOST_BYTES, SettingsError."""
        self._version = None
        with os.fdopen(open_trusted(self.path), "rb") as file:
            version = _version(os.fstat(file.fileno()))
            content = file.read(MOST_BYTES + 1)
        self._version = version
        if len(content) > MOST_BYTES:
            raise SettingsError(f"it has more than {MOST_BYTES} bytes")
        return content.decode()


def _version(status: os.stat_result) -> Version:
    # Not only the time of the content's last change, which `touch` and `cp -p` can set to an earlier one.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
