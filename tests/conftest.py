"""What most tests of routes start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.fakes import serving


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A ready service; tests that hold its engine or change its settings make their own."""
    with serving() as client:
        yield client
