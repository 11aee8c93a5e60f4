"""The operating system's limit on open files, and with it on connections: each is an open file."""

from __future__ import annotations

import sys
from pathlib import Path

MOST_FILES = 2**16  # the limit that we set if the hard limit allows more, or is infinite
SPARE_FILES = 16  # for the responses that refuse surplus connections, and for our own files


def raise_file_limit() -> None:
    """Raise the soft limit to the hard one, at most MOST_FILES: the default 1024 is a limit of select()."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def most_connections(wanted: int) -> int:
    """Return `wanted`, or fewer if the limit of open files does not allow it, at least 1.

    wanted: 0 for as many as the limit allows.
    """
    if sys.platform == "win32":
        return wanted or sys.maxsize
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted or sys.maxsize
    open_files = sum(1 for _ in Path("/dev/fd").iterdir())
    left = max(1, limit - open_files - SPARE_FILES)
    return min(wanted or left, left)
