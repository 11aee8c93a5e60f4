"""What most tests of routes start from, and which tests are quick."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests import running
from tests.certificates import OPENSSL, Certificate, self_signed
from tests.fakes import serving
from tests.running import Running

HERE = Path(__file__).parent
# They train, run real networks, drive a browser, or run Ray, nginx and Prometheus.
SLOW_FOLDERS = ("api/web", "bulk", "ops", "safety", "training")
SLOW_MODULES = ("engine/test_resnet18.py", "engine/test_torch.py", "test_shipped.py")
SLOW = {HERE / path for path in (*SLOW_FOLDERS, *SLOW_MODULES)}
STARTING = (running.running, running.serving)  # `leuko serve`: a second or two each time


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A ready service; tests that hold its engine or change its settings make their own."""
    with serving() as client:
        yield client


@pytest.fixture(scope="session")
def service() -> Iterator[Running]:
    """`leuko serve` with the fake classifier and no settings.

    It is shared by many modules: for tests that leave it as it is, and look neither at its log nor at counts
    since its start.
    """
    with running.running() as service:
        yield service


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """The certificate of a server on this machine, signed by itself."""
    if OPENSSL is None:
        pytest.skip("openssl is absent here")
    return self_signed(tmp_path_factory.mktemp("tls"), "localhost")


@pytest.fixture
def root_logger() -> Iterator[None]:
    """For tests that configure logging: the root logger has no handlers, and is as before afterwards."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.handlers[:] = []
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def bounded() -> Iterator[None]:
    """Fail a test that waits too long, also in the kernel: without its control it would wait for ever."""

    def fail(*_: object) -> None:
        raise AssertionError(f"it waited for {running.PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(running.PATIENCE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import the slow tests, and what they import, where only quick ones are asked for."""
    return True if config.option.markexpr == "quick" and collection_path in SLOW else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_quick(item):
            item.add_marker(pytest.mark.quick)


def is_quick(item: pytest.Item) -> bool:
    if (
        SLOW & {item.path, *item.path.parents}
        or item.get_closest_marker("ops")
        or item.get_closest_marker("gpu")
    ):
        return False
    names = vars(item.getparent(pytest.Module).obj).values()  # type: ignore[union-attr]
    starts = any(name is function for name in names for function in STARTING)
    return not starts and "service" not in getattr(item, "fixturenames", ())
