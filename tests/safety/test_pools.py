"""Scenarios 43 and 58: work in threads and processes, of one caller beside another or of one who left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.edge.keys import SCOPES, add_key
from app.units import MIB
from benchmarks.client import MULTIPART
from benchmarks.stalls import cells, outcomes, parts, pattern
from tests.fake_classifier import png
from tests.fakes import zipped
from tests.running import FAKE, Running, linux, running, wait_until
from tests.safety.memory import growing_less_than
from tests.safety.test_bodies import JSON, SMALL_MIB, send, working
from tests.safety.test_fairness import Caller

REQUESTS, LEAVING = 12, 8
LONGEST = 60 * MIB
UNTIL_IT_WAITS_S = 1.0  # the body was received and counted; else the test shows less, but does not fail


@contextmanager
def two_keys(folder: Path) -> Iterator[tuple[Running, Caller, Caller]]:
    file = folder / "keys"
    secrets = [add_key(file, id, SCOPES) for id in ("flood", "quiet")]
    with running(FAKE, "--drain-s", "1", environ={"LEUKO_KEYS": str(file)}) as service:
        flood, quiet = (Caller(service.address, key=secret) for secret in secrets)
        yield service, flood, quiet


@contextmanager
def stopped(service: Running) -> Iterator[None]:
    """The one process for large bodies, as if it took for ever."""
    wait_until(lambda: bool(working(service, "json_tasks")))
    (pid,) = working(service, "json_tasks")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def post(caller: Caller, path: str, body: bytes, media_type: str = JSON) -> httpx.Response:
    with caller.client() as client:
        return send(client, path, body, media_type)


def answered(futures: list[Future[httpx.Response]], status: int) -> int:
    return sum(future.done() and future.result().status_code == status for future in futures)


@linux
def test_43_bodies_whose_clients_left_while_they_waited_take_no_memory() -> None:
    body = b'{"labels":["' + b"x" * LONGEST + b'"]}'
    with (
        running(FAKE, environ={"MALLOC_ARENA_MAX": "1"}) as service,
        service.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(send, client, "/evaluate/predictions", outcomes(20_000).body)
        with stopped(service), growing_less_than(3 * LONGEST / MIB + SMALL_MIB, service):
            for _ in range(LEAVING):
                with (
                    httpx.Client(base_url=service.address, timeout=UNTIL_IT_WAITS_S) as leaving,
                    pytest.raises(httpx.TimeoutException),
                ):
                    send(leaving, "/evaluate/predictions", body)
        assert first.result().status_code == 200


@linux
def test_58_slow_patterns_of_one_key_do_not_hold_up_those_of_another(tmp_path: Path) -> None:
    slow, archive = pattern(), zipped({"monocyte/p1_a": png(130)})
    quick = parts(("archive", "", archive), ("group_pattern", "", rb"(p\d)"))
    with two_keys(tmp_path) as (service, flood, quiet), ThreadPoolExecutor(REQUESTS) as pool:
        flooding = [pool.submit(post, flood, slow.path, slow.body, slow.media_type) for _ in range(REQUESTS)]
        wait_until(lambda: bool(working(service, "pattern_search")))
        wait_until(lambda: answered(flooding, 429) >= REQUESTS - 5)  # one runs, four wait
        assert post(quiet, "/evaluate", quick, MULTIPART).status_code == 200
        assert answered(flooding, 422) < 3  # each takes 10 s
        service.end()


@linux
def test_43_patterns_that_wait_or_run_when_the_service_ends_get_503(tmp_path: Path) -> None:
    slow = pattern()
    with two_keys(tmp_path) as (service, flood, quiet), ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(post, each, slow.path, slow.body, slow.media_type)
            for each in (flood, flood, flood, quiet)
        ]
        wait_until(lambda: len(working(service, "pattern_search")) == 2)
        assert service.end() == 0
        refused = [future.result() for future in asked]
    assert [response.status_code for response in refused] == [503] * 4
    assert {response.headers["Retry-After"] for response in refused} == {"1"}
    assert "Traceback" not in "".join(service.log)


@linux
def test_58_large_bodies_of_one_key_take_turns_with_those_of_another(tmp_path: Path) -> None:
    large, count = outcomes(100_000), cells(10_000)
    with two_keys(tmp_path) as (service, flood, quiet), ThreadPoolExecutor(REQUESTS) as pool:
        flooding = [pool.submit(post, flood, large.path, large.body) for _ in range(REQUESTS)]
        with stopped(service):
            wait_until(lambda: answered(flooding, 429) >= REQUESTS - 6)
        assert post(quiet, count.path, count.body).status_code == 200
        assert answered(flooding, 200) < 4
        assert [future.result().status_code for future in flooding].count(200) >= 4
