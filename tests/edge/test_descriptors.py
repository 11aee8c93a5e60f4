from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.edge.descriptors import SPARE_FILES, most_connections, raise_file_limit

pytestmark = pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs /dev/fd")


@contextmanager
def files(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files() -> int:
    return len([*Path("/dev/fd").iterdir()])


def test_connections_leave_spare_files() -> None:
    limit = open_files() + SPARE_FILES + 10
    with files(limit):
        assert most_connections(0) == 10
        assert most_connections(10**6) == 10
        assert most_connections(3) == 3


def test_there_is_always_one_connection() -> None:
    with files(open_files() + 5):
        assert most_connections(0) == most_connections(1) == 1


def test_the_limit_is_raised_to_what_is_allowed() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with files(200):
        raise_file_limit()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft > 200
        assert soft == hard or soft == 2**16
