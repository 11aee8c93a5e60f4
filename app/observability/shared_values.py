"""The values that a process shares with others in files, whose space is allocated before it is used."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from time import monotonic

from prometheus_client import mmap_dict, values

LACKING = ".lacking"  # ends the name of an empty file that says that values of a process are not shared
CHECK_S = 5.0  # between two attempts to share what could not be shared
INITIAL_SIZE = 2**16  # bytes of a file

logger = logging.getLogger(__name__)
_opened: set[SharedValues] = set()  # by this process
_lacking: set[str] = set()  # the names of those of them in which values are missing


def install() -> None:
    """Have prometheus_client use `SharedValues`; it has no setting for that. Call before metrics are made."""
    values.MmapedDict = SharedValues  # type: ignore[attr-defined, assignment]


def check() -> None:
    """Share what could not be shared, if it is time to try again."""
    for opened in list(_opened):
        opened.check()


def unshared(folder: str) -> bool:
    """Return whether the files in the folder lack values of a process."""
    return bool(_lacking) or any(Path(folder).glob("*" + LACKING))


def forget(pid: int | None, folder: str) -> None:
    """Remove what says that values of a process are not shared, after its end."""
    for file in Path(folder).glob(f"*_{pid}.db{LACKING}"):
        file.unlink(missing_ok=True)


class SharedValues(mmap_dict.MmapedDict):
    """prometheus_client's file of values; a value for which there is no space stays in this process.

    Their files are sparse: where the disk has no room for a page, the kernel ends the process that writes to
    it (SIGBUS). Every CHECK_S, what is missing is written if there is space by then, to a new file if the old
    one was deleted.
    """

    def __init__(self, filename: str, *, clock: Callable[[], float] = monotonic) -> None:
        """clock: a fake in tests."""
        self._fname = filename
        self._mapped = False
        self._positions: dict[str, int] = {}
        self._kept: dict[str, tuple[float, float]] = {}  # value and timestamp of what is not in the file
        self._clock = clock
        self._check_at = clock() + CHECK_S
        self._lock = Lock()
        self._share()
        _opened.add(self)

    def read_value(self, key: str) -> tuple[float, float]:
        with self._lock:
            if key not in self._positions and key not in self._kept:
                self._kept[key] = (0.0, 0.0)
                if self._fname not in _lacking:
                    self._share()
            return self._kept[key] if key in self._kept else self._read(key)

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        with self._lock:
            if key in self._positions:
                super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]
            else:
                self._kept[key] = (value, timestamp)

    def check(self) -> None:
        """Share what could not be shared, if it is time to try again."""
        if self._clock() < self._check_at:
            return
        self._check_at = self._clock() + CHECK_S
        with self._lock:
            if self._mapped and not Path(self._fname).exists():
                self._kept |= {key: self._read(key) for key in self._positions}
                self._positions = {}
                self._unmap()
            if self._kept or not self._mapped:
                self._share()

    def close(self) -> None:
        with self._lock:
            self._unmap()
        _opened.discard(self)

    def _unmap(self) -> None:
        if self._mapped:
            self._mapped = False
            super().close()  # type: ignore[no-untyped-call]

    def _share(self) -> None:
        """Move values from this process to the file, until it has no space."""
        try:
            if not self._mapped:
                self._open()
            for key, (value, timestamp) in list(self._kept.items()):
                self._allocate(key)
                super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]
                del self._kept[key]
        except OSError as error:
            self._report(error)
        else:
            self._recover()

    def _open(self) -> None:
        """Open the file; a new one gets its name once it has its size, since others read it from then on."""
        if not Path(self._fname).exists():
            new = self._fname + LACKING
            with open(new, "wb") as file:  # noqa: PTH123 (as in prometheus_client)
                _allocate(file.fileno(), INITIAL_SIZE)
            os.rename(new, self._fname)  # noqa: PTH104
        super().__init__(self._fname)  # type: ignore[no-untyped-call]
        self._mapped = True

    def _allocate(self, key: str) -> None:
        """Allocate what the file needs for one more value. Raise OSError."""
        size: int = self._capacity
        while self._used + len(key.encode()) + 32 > size:  # its length, padding, value and timestamp
            size *= 2
        if size > self._capacity:
            _allocate(self._f.fileno(), size)

    def _read(self, key: str) -> tuple[float, float]:
        pair: tuple[float, float] = super().read_value(key)  # type: ignore[no-untyped-call]
        return pair

    def _report(self, error: OSError) -> None:
        """Say so in the log, once until all is shared again, and in the folder."""
        if not _lacking:
            logger.error(
                "metrics of process %d are not in the sums of all processes: %s", os.getpid(), error.strerror
            )
        _lacking.add(self._fname)
        with suppress(OSError):
            Path(self._fname + LACKING).touch()

    def _recover(self) -> None:
        if self._fname in _lacking:
            _lacking.discard(self._fname)
            Path(self._fname + LACKING).unlink(missing_ok=True)
            if not _lacking:
                logger.info("metrics of process %d are in the sums of all processes again", os.getpid())


def _allocate(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:  # macOS
        start = os.fstat(file).st_size
        os.pwrite(file, bytes(size - start), start)
