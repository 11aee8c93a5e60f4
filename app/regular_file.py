"""Open regular files only: no link, FIFO, device or socket, which could lead elsewhere or never respond."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# O_NONBLOCK: opening a FIFO must not wait for its other end. It has no effect on regular files.
FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
MOST_LINKS = 8  # that lead to one file
LINKED = (errno.ELOOP, errno.EMLINK)  # what O_NOFOLLOW fails with; FreeBSD has the second


class Refused(OSError):
    """There is something else than a regular file, or a link that is not followed."""


def open_regular(path: Path, flags: int, mode: int = 0o640) -> int:
    """Open a file without following a link, and return its descriptor. Raise Refused or another OSError."""
    try:
        file = os.open(path, flags | FLAGS, mode)
    except OSError as error:
        if error.errno in LINKED:
            raise Refused(errno.ELOOP, "it is a symbolic link", str(path)) from None
        if error.errno == errno.ENXIO:  # a FIFO that nobody reads, or a socket
            raise _not_regular(path) from None
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise _not_regular(path)
    return file


def open_trusted(path: Path) -> int:
    """Open a file for reading; follow a link only where it cannot be a trick. Raise Refused or OSError.

    That is a link whose owner is root, the user of this process, or the owner of its folder, who could as
    well replace the file: the rule of Linux's fs.protected_symlinks, for all folders. Kubernetes mounts its
    secrets as links of root.
    """
    for _ in range(MOST_LINKS):
        try:
            return open_regular(path, os.O_RDONLY)
        except Refused as error:
            if error.errno != errno.ELOOP:
                raise
        path = _follow(path)
    raise Refused(errno.ELOOP, f"more than {MOST_LINKS} symbolic links lead to it", str(path))


def _follow(path: Path) -> Path:
    owner = path.lstat().st_uid
    if owner not in (0, os.geteuid(), path.parent.stat().st_uid):
        raise Refused(errno.EPERM, f"it is a symbolic link of user {owner}", str(path))
    return path.parent / path.readlink()


def _not_regular(path: Path) -> Refused:
    return Refused(errno.EINVAL, "it is not a regular file", str(path))
