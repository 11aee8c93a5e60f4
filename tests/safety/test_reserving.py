"""What requests hold of a running service before they are known to be wanted, and what one caller may."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.edge.keys import add_key
from app.units import MIB
from tests.fake_classifier import png
from tests.running import FAKE, Running, running, wait_until
from tests.safety.raw import ARCHIVE, FORM, answer, chunk, connected, first_answer, head, statuses

CHUNKED, PNG = "Transfer-Encoding: chunked", "Content-Type: image/png"
ASKS = "Expect: 100-continue"  # so that the service says when it begins to read the body
BYTE = b"1\r\nx\r\n"


@dataclass(frozen=True)
class Keyed:
    service: Running
    secrets: dict[str, str]  # by id

    def key(self, id: str) -> str:
        return f"Authorization: Bearer {self.secrets[id]}"

    def predict(self, id: str, more: int = 0) -> int:
        headers = {"authorization": f"Bearer {self.secrets[id]}", "content-type": "image/png"}
        url = f"{self.service.address}/predict"
        return httpx.post(url, content=png(0) + bytes(more), headers=headers, timeout=60).status_code

    def begin(
        self, stack: ExitStack, line: str, *headers: str, start: bytes = BYTE
    ) -> tuple[socket.socket, int]:
        """Send a head and the start of a body; return the status, 100 if the body is being read."""
        client = stack.enter_context(connected(self.service.port))
        client.sendall(head(line, *headers))
        (status, *_) = statuses(answer(client))
        client.sendall(start)
        return client, status


def serve(folder: Path, *arguments: str) -> Iterator[Keyed]:
    scopes = {"lab": ["predict", "evaluate"], "ward": ["predict"], "scraper": ["metrics"]}
    secrets = {id: add_key(folder / "keys", id, owned) for id, owned in scopes.items()}
    limits = ("--max-body-mib", "1", "--max-reserved-mib", "2", "--body-timeout-s", "600")
    with running(FAKE, "--keys", str(folder / "keys"), *limits, *arguments) as service:
        yield Keyed(service, secrets)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A service with one place for a request with a body."""
    yield from serve(tmp_path_factory.mktemp("single"), "--max-requests", "1")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A service with four places, and 2 MiB for bodies."""
    yield from serve(tmp_path_factory.mktemp("few"), "--max-requests", "4")


UNWANTED = {
    "POST /healthz": (405, None),
    "POST /readyz": (405, None),
    "POST /": (405, None),
    "POST /docs": (405, None),
    "POST /openapi.json": (405, None),
    "POST /problems/too_large": (405, None),
    "POST /page/page.js": (405, None),
    "POST /swagger/swagger-ui.css": (405, None),
    "POST /v2/health/live": (405, None),
    "GET /healthz": (200, None),
    "POST /predict": (401, None),
    "POST /v1/predict": (403, "scraper"),
    "POST /evaluate": (403, "ward"),
    "POST /model": (405, "scraper"),
    "POST /metrics": (405, "scraper"),
    "POST /nowhere": (404, "scraper"),
    "POST /predict/": (404, "lab"),
    "PUT /predict": (405, "lab"),
    "GET /predict": (405, "lab"),
    "POST /differential": (415, "lab"),  # for its type, by the route itself
    "POST /v2/models/a/infer": (404, "lab"),
}


@pytest.mark.parametrize("line", UNWANTED)
def test_37_a_body_that_nobody_wants_holds_no_place_and_no_memory(single: Keyed, line: str) -> None:
    status, id = UNWANTED[line]
    with ExitStack() as idle:
        for _ in range(3):
            key = [] if id is None else [single.key(id)]
            _, found = single.begin(idle, f"{line} HTTP/1.1", CHUNKED, *key)
            assert found == status
            # Its connection still reads, and throws away, the rest of the body.
            assert single.predict("lab") == 200


def test_37_where_all_places_are_taken_a_body_that_nobody_wants_is_refused_for_what_it_is(
    single: Keyed,
) -> None:
    with ExitStack() as idle:
        _, status = single.begin(idle, "POST /predict HTTP/1.1", PNG, CHUNKED, ASKS, single.key("lab"))
        assert (status, single.predict("ward")) == (100, 429)
        for line, (status, id) in UNWANTED.items():
            key = [] if id is None else [single.key(id)]
            _, found = single.begin(idle, f"{line} HTTP/1.1", CHUNKED, *key)
            takes_body = line in ("POST /differential", "POST /v2/models/a/infer")
            assert (line, found) == (line, 429 if takes_body else status)
    wait_until(lambda: single.predict("ward") == 200)


def test_37_a_method_that_a_route_lacks_is_405_with_the_ones_it_has(single: Keyed) -> None:
    for path in ("/healthz", "/page/page.js", "/swagger/a"):
        sent = httpx.post(single.service.address + path)
        assert (path, sent.status_code) == (path, 405)
        assert sent.headers["Allow"] == "GET, HEAD, OPTIONS"


def test_37_idle_bodies_with_a_key_keep_nobody_from_being_answered(few: Keyed) -> None:
    with ExitStack() as idle:
        for _ in range(2):
            _, status = few.begin(idle, "POST /predict HTTP/1.1", PNG, CHUNKED, ASKS, few.key("lab"))
            assert status == 100
        for _ in range(5):
            assert [few.predict("lab", MIB // 2), few.predict("ward", MIB // 2)] == [200, 200]


def test_37_a_declared_body_that_does_not_come_gives_its_memory_back(few: Keyed) -> None:
    with ExitStack() as idle:
        declared = ("POST /evaluate HTTP/1.1", ARCHIVE, f"Content-Length: {MIB}", ASKS, few.key("lab"))
        client, status = few.begin(idle, *declared, start=FORM)
        assert status == 100
        _, status = few.begin(idle, *declared)
        assert status == 429
        assert few.predict("ward", MIB // 2) == 200
        wait_until(lambda: few.predict("lab", MIB - 1000) == 200)
        client.sendall(bytes(MIB - len(FORM)))  # it may still come
        assert statuses(answer(client)) == [400]  # for the form's end is missing


def test_37_one_caller_leaves_places_for_another(few: Keyed) -> None:
    with ExitStack() as idle:
        found = []
        for _ in range(4):
            _, status = few.begin(idle, "POST /predict HTTP/1.1", PNG, CHUNKED, ASKS, few.key("lab"))
            found.append(status)
        assert found == [100, 100, 100, 429]
        assert [few.predict("lab"), few.predict("ward")] == [429, 200]
    wait_until(lambda: few.predict("lab") == 200)


def test_37_one_caller_leaves_memory_for_another(few: Keyed) -> None:
    with ExitStack() as idle:
        chunked = ("POST /evaluate HTTP/1.1", ARCHIVE, CHUNKED, ASKS, few.key("lab"))
        first, _ = few.begin(idle, *chunked, start=chunk(FORM))
        second, _ = few.begin(idle, *chunked, start=chunk(FORM))
        for client in (first, second):
            client.sendall(chunk(bytes(MIB - 2 * len(FORM))))
        assert statuses(first_answer(first, second)) == [429]
        declared = ("POST /evaluate HTTP/1.1", ARCHIVE, f"Content-Length: {MIB}", ASKS, few.key("lab"))
        _, status = few.begin(idle, *declared)
        assert status == 429
        assert few.predict("ward", MIB // 2) == 200
