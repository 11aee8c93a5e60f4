"""The temporary folder in which several processes share their metrics.

Each process that uses it holds a lock on it for its life, however that ends. So the next supervisor can tell
folders in use from those left behind, also where the number of a process was used again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PREFIX = "leuko-metrics-"
SHARED = "PROMETHEUS_MULTIPROC_DIR"  # its path, for prometheus_client, which reads this when it is imported

logger = logging.getLogger(__name__)


@contextmanager
def shared_folder() -> Iterator[str]:
    """Make a folder and hold it; delete it at the end. First delete those whose processes were all killed."""
    _sweep()
    folder, lock = _make()
    try:
        yield folder
    finally:
        os.close(lock)
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


def restore(folder: str) -> bool:
    """Make and hold a folder again that was deleted while in use; return whether it was missing.

    Raise OSError.
    """
    if os.path.lexists(folder):
        return False
    os.mkdir(folder, 0o700)  # noqa: PTH102 (a name that another user has taken meanwhile is an error)
    hold(folder)  # until this process ends
    return True


def hold(folder: str) -> int:
    """Lock a folder as one of several users; return the descriptor that holds the lock.

    Raise BlockingIOError if it is being deleted, FileNotFoundError if it was.
    """
    return _lock(folder, fcntl.LOCK_SH)


def _make() -> tuple[str, int]:
    """Return a new folder and its lock; try again if another supervisor deletes it before it is locked."""
    while True:
        folder = tempfile.mkdtemp(prefix=PREFIX)
        try:
            lock = hold(folder)
        except (BlockingIOError, FileNotFoundError):
            continue
        if os.fstat(lock).st_nlink:
            return folder, lock
        os.close(lock)


def _sweep() -> None:
    """Delete what was left behind; a folder that cannot be deleted costs its space, not the start."""
    try:
        parent = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        logger.warning("the temporary folder cannot be searched for old metrics: %s", error.strerror)
        return
    try:
        for name in os.listdir(parent):  # noqa: PTH208 (a descriptor is no path)
            if name.startswith(PREFIX):
                try:
                    _delete_unused(parent, name)
                except OSError as error:
                    logger.warning("%s in the temporary folder cannot be deleted: %s", name, error.strerror)
    finally:
        os.close(parent)


def _delete_unused(parent: int, name: str) -> None:
    """Delete a folder that is ours and that nobody holds; follow no link."""
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    try:
        lock = _lock(name, fcntl.LOCK_EX, parent)
    except BlockingIOError:  # in use
        return
    try:
        shutil.rmtree(name, dir_fd=parent)  # itself safe against links that are put in its way
    finally:
        os.close(lock)


def _lock(folder: str, kind: int, parent: int | None = None) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
