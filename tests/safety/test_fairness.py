"""Scenario 58: one caller floods the service. What another waits is counted in images run before its own.

The only worker is held while all images are queued, so that their order does not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.edge.keys import SCOPES, add_key
from tests.fake_classifier import png
from tests.running import PATIENCE_S, Running, running, wait_until
from tests.safety.faulty import GO, HELD, HOLD, wait_for
from tests.safety.halting_decoder import FOLDER, HALT, halted, resumed
from tests.safety.noting import NOTING, batches
from tests.zips import pack

FLOOD, QUIET = 100, 200  # greys
CONNECTIONS, IMAGES = 8, 64
ARGUMENTS = ("--decode-workers", "1", "--max-batch", "4", "--deadline-s", "120", "--engine-timeout-s", "120")


@dataclass(frozen=True)
class Caller:
    """A client with a key, or with an address of its own."""

    base: str
    address: str = "127.0.0.1"
    key: str = ""

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.base,
            transport=httpx.HTTPTransport(local_address=self.address),
            headers={"X-API-Key": self.key} if self.key else {},
            timeout=PATIENCE_S,
        )

    def predict(self, grey: int, count: int = 1) -> httpx.Response:
        with self.client() as client:
            return client.post("/predict", files=[("files", ("cell.png", png(grey)))] * count)

    def metric(self, name: str) -> float:
        with self.client() as client:
            text = client.get("/metrics").raise_for_status().text
        [line] = [row for row in text.splitlines() if row.startswith(f"{name} ")]
        return float(line.split()[1])


@dataclass(frozen=True)
class Held:
    """A service whose only worker is held. callers: one floods, the other does not."""

    folder: Path
    pool: ThreadPoolExecutor
    flood: Caller
    quiet: Caller
    first: Future[httpx.Response]  # of the image that holds it

    def submit(self, caller: Caller, grey: int, count: int = 1) -> Future[httpx.Response]:
        return self.pool.submit(caller.predict, grey, count)

    def wait_for_depth(self, depth: int) -> None:
        wait_until(lambda: self.quiet.metric("leuko_queue_depth") == depth)

    def go(self) -> None:
        (self.folder / GO).touch()

    def order(self) -> list[int]:
        """Return the greys of all images that were run after the first, in order."""
        return [grey for batch in batches(self.folder) for grey in batch][1:]


@contextmanager
def held(folder: Path, kind: str, weight: int = 1) -> Iterator[Held]:
    environ = {FOLDER: str(folder)}
    secrets = ["", ""]
    if kind == "keys":
        file = folder / "keys"
        secrets = [add_key(file, id, SCOPES) for id in ("flood", "quiet")]
        file.write_text(file.read_text().rstrip() + f" weight={weight}\n")
        environ["LEUKO_KEYS"] = str(file)
    with (
        ThreadPoolExecutor(4 * CONNECTIONS) as pool,
        running(NOTING, *ARGUMENTS, environ=environ) as service,
    ):
        flood, quiet = callers(service, kind, secrets)
        first = pool.submit(flood.predict, HOLD)
        one = Held(folder, pool, flood, quiet, first)
        wait_for(folder / HELD)
        try:
            yield one
        finally:
            one.go()
            assert first.result().status_code == 200


def callers(service: Running, kind: str, secrets: Sequence[str]) -> list[Caller]:
    other = "127.0.0.1" if kind == "keys" else "127.0.0.2"
    return [
        Caller(service.address, address, key)
        for address, key in zip((other, "127.0.0.1"), secrets, strict=True)
    ]


KINDS = pytest.mark.parametrize("kind", ["keys", "addresses"])


@KINDS
def test_58_a_caller_beside_a_flood_is_never_refused_and_overtakes_its_backlog(
    tmp_path: Path, kind: str
) -> None:
    with held(tmp_path, kind) as service:
        flood = [service.submit(service.flood, FLOOD, IMAGES) for _ in range(CONNECTIONS)]
        service.wait_for_depth(256)
        wait_until(lambda: sum(request.done() for request in flood) == CONNECTIONS - 256 // IMAGES)
        quiet = [service.submit(service.quiet, QUIET) for _ in range(8)]
        service.wait_for_depth(256 + len(quiet))
        refused = service.flood.predict(FLOOD)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert service.quiet.metric("leuko_queue_share_refused_total") == 1
        assert service.quiet.metric("leuko_queue_callers") == 2
        service.go()
        assert [request.result().status_code for request in quiet] == [200] * 8
        assert [request.result().status_code for request in flood].count(200) == 4
        order = service.order()
    last = len(order) - 1 - order[::-1].index(QUIET)
    assert order[: last + 1].count(FLOOD) <= 9
    assert len(order) == 256 + 8


@KINDS
def test_58_a_flood_runs_one_image_at_a_time_while_another_caller_is_active(
    tmp_path: Path, kind: str
) -> None:
    with held(tmp_path, kind) as service:
        flood = service.submit(service.flood, FLOOD, IMAGES)
        service.wait_for_depth(IMAGES)
        quiet = service.submit(service.quiet, QUIET)
        service.wait_for_depth(IMAGES + 1)
        service.go()
        assert [quiet.result().status_code, flood.result().status_code] == [200, 200]
        assert batches(tmp_path)[1:4] == [[QUIET], [FLOOD], [FLOOD]]


def uploads(images: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", ("cell.png", image)) for image in images]


def predict(caller: Caller, images: Sequence[bytes]) -> httpx.Response:
    with caller.client() as client:
        return client.post("/predict", files=uploads(images))


def evaluate_set(caller: Caller, images: Sequence[bytes]) -> httpx.Response:
    archive = pack({f"monocyte/{number}.png": image for number, image in enumerate(images)})
    with caller.client() as client:
        return client.post("/evaluate", files={"archive": ("set.zip", archive)})


SEND = {"/predict": predict, "/evaluate": evaluate_set}


@KINDS
@pytest.mark.parametrize("route", SEND)
def test_58_a_batch_of_slow_images_is_not_finished_while_another_caller_waits(
    tmp_path: Path, kind: str, route: str
) -> None:
    with held(tmp_path, kind) as service:
        service.go()
        service.first.result()
        images = [HALT, *[png(FLOOD)] * 3]
        flood = service.pool.submit(SEND[route], service.flood, images)
        wait_until(lambda: bool(halted(tmp_path)))
        quiet = service.submit(service.quiet, QUIET)
        service.wait_for_depth(1)
        with resumed(tmp_path):
            assert [quiet.result().status_code, flood.result().status_code] == [200, 200]
        assert batches(tmp_path)[1:3] == [[0], [QUIET]]
        assert service.order().count(FLOOD) == 3


@KINDS
def test_58_slow_images_that_nobody_waits_for_are_not_decoded(tmp_path: Path, kind: str) -> None:
    with held(tmp_path, kind) as service:
        service.go()
        service.first.result()
        with service.flood.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/predict", files=uploads([HALT, *[png(FLOOD)] * 3]), timeout=1)
        service.wait_for_depth(0)  # it is noticed a moment later that the client has left
        quiet = service.submit(service.quiet, QUIET)
        service.wait_for_depth(1)
        with resumed(tmp_path):
            assert quiet.result().status_code == 200
        assert service.order().count(FLOOD) <= 1  # the other worker may have waited with one for a decoder


@KINDS
def test_58_a_request_of_256_images_is_admitted_beside_a_flood_that_fills_the_queue(
    tmp_path: Path, kind: str
) -> None:
    with held(tmp_path, kind) as service:
        flood = [service.submit(service.flood, FLOOD, IMAGES) for _ in range(4)]
        service.wait_for_depth(256)
        large = service.submit(service.quiet, QUIET, 256)
        service.wait_for_depth(512)
        service.go()
        assert large.result().status_code == 200
        assert [request.result().status_code for request in flood] == [200] * 4
        order = service.order()
    first_half = order[:256]
    assert abs(first_half.count(QUIET) - 128) <= 4


def test_58_a_key_of_weight_3_is_served_three_images_for_one_of_another(tmp_path: Path) -> None:
    with held(tmp_path, "keys", weight=3) as service:
        both = [service.submit(service.flood, FLOOD, IMAGES), service.submit(service.quiet, QUIET, IMAGES)]
        service.wait_for_depth(2 * IMAGES)
        service.go()
        assert [request.result().status_code for request in both] == [200, 200]
        order = service.order()
    assert abs(order[:40].count(QUIET) - 30) <= 2


@KINDS
def test_58_a_caller_alone_fills_whole_batches_and_the_whole_queue(tmp_path: Path, kind: str) -> None:
    with held(tmp_path, kind) as service:
        flood = service.submit(service.flood, FLOOD, 256)
        service.wait_for_depth(256)
        service.go()
        assert flood.result().status_code == 200
        assert [len(batch) for batch in batches(tmp_path)[1:]] == [4] * 64


@pytest.mark.ops
@KINDS
def test_58_an_evaluation_progresses_beside_eight_of_another_caller(tmp_path: Path, kind: str) -> None:
    count, queued = 40, 8  # images in each; images that each has in the queue
    with held(tmp_path, kind) as service:
        flood = [evaluation(service, service.flood, FLOOD, count) for _ in range(8)]
        quiet = evaluation(service, service.quiet, QUIET, queued)
        service.go()
        assert quiet.result() == 200
        assert [request.result() for request in flood] == [200] * 8
        order = service.order()
    assert order.count(FLOOD) == 8 * count
    last = len(order) - 1 - order[::-1].index(QUIET)
    assert order[: last + 1].count(FLOOD) <= queued + 4


def evaluation(service: Held, caller: Caller, grey: int, count: int) -> Future[int]:
    """Return the status of an evaluation, once its first images are in the queue."""
    waiting: Future[None] = Future()
    done = service.pool.submit(evaluate, caller, grey, count, waiting)
    waiting.result(PATIENCE_S)
    return done


def evaluate(caller: Caller, grey: int, count: int, waiting: Future[None]) -> int:
    label = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")[grey // 64]
    archive = pack({f"{label}/{number}.png": png(grey) for number in range(count)})
    events = 0
    with (
        caller.client() as client,
        client.stream(
            "POST",
            "/evaluate",
            files={"archive": ("set.zip", archive)},
            headers={"Accept": "text/event-stream"},
        ) as response,
    ):
        last = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                last, events = line, events + 1
            if events == 2 and not waiting.done():  # the first comes before the images are queued
                waiting.set_result(None)
        assert last == "event: result"
        return response.status_code
