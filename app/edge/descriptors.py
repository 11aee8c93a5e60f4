"""How many connections the operating system lets a process have; each is an open file."""

from __future__ import annotations

import sys
from pathlib import Path

MOST_FILES = 2**16  # asked for where as many as one likes may be open
SPARE_FILES = 16  # for the answers that send surplus connections away, and for our own files


def raise_file_limit() -> None:
    """To what this process may give itself: the usual 1024 is for programs that use select."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def most_connections(wanted: int) -> int:
    """As many as are wanted, if the limit of open files leaves them; 0 wants all that it leaves."""
    if sys.platform == "win32":
        return wanted or sys.maxsize
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted or sys.maxsize
    open_now = sum(1 for _ in Path("/dev/fd").iterdir())
    left = max(1, limit - open_now - SPARE_FILES)
    return min(wanted or left, left)
