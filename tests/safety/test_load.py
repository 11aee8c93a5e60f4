"""More than there is room or time for, and clients that do not wait: a real server whose engine is held."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.fake_classifier import png
from tests.running import Running, wait_until
from tests.safety.faulty import GO, HELD, HOLD, faulty, wait_for
from tests.safety.raw import connected, head, rest, statuses
from tests.safety.sending import alone


class Held:
    """A service whose only worker is held, by a picture that `first` will answer."""

    def __init__(self, service: Running, folder: Path, pool: ThreadPoolExecutor) -> None:
        self._service = service
        self._folder = folder
        self._pool = pool
        self.first = self.send(HOLD)
        wait_for(folder / HELD)

    def send(self, *greys: int) -> Future[httpx.Response]:
        files = [("files", ("cell.png", png(grey))) for grey in greys]
        return self._pool.submit(
            lambda: httpx.post(f"{self._service.address}/predict", files=files, timeout=30)
        )

    def go(self) -> None:
        (self._folder / GO).touch()

    def metric(self, line: str) -> float:
        text = httpx.get(f"{self._service.address}/metrics").text
        found = [row for row in text.splitlines() if row.startswith(line + " ")]
        return float(found[0].split()[-1]) if found else 0.0

    def wait_for_depth(self, depth: int) -> None:
        wait_until(lambda: self.metric("leuko_queue_depth") == depth)


@contextmanager
def held(folder: Path, *arguments: str) -> Iterator[Held]:
    with ThreadPoolExecutor() as pool, faulty(folder, *arguments) as service:
        one = Held(service, folder, pool)
        try:
            yield one
        finally:
            one.go()


def test_20_a_full_queue_is_429_with_retry_after_and_the_admitted_are_answered(tmp_path: Path) -> None:
    with held(tmp_path, "--max-queue", "4") as service:
        admitted = service.send(0, 64, 128, 192)
        service.wait_for_depth(4)
        refused = service.send(0).result()
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        assert int(refused.headers["Retry-After"]) >= 1
        assert not admitted.done()
        service.go()
        assert len(admitted.result().json()["predictions"]) == 4
        assert service.first.result().status_code == 200


def test_22_an_image_whose_deadline_passes_in_the_queue_is_504_and_never_inferred(tmp_path: Path) -> None:
    with held(tmp_path, "--deadline-s", "1") as service:
        late = service.send(64).result()
        assert (late.status_code, late.json()["code"]) == (504, "deadline_passed")
        service.go()
        assert service.first.result().status_code == 504
        assert service.send(128).result().status_code == 200
        assert service.metric("leuko_batch_size_sum") == 2  # the one that was held, and the last


def test_23_a_client_that_sends_no_more_gets_its_whole_response(tmp_path: Path) -> None:
    body = png(64)
    request = head("POST /predict HTTP/1.1", "Content-Type: image/png", f"Content-Length: {len(body)}") + body
    with ThreadPoolExecutor() as pool, faulty(tmp_path) as service:
        held = Held(service, tmp_path, pool)
        with connected(service.port) as client:
            client.sendall(request)
            held.wait_for_depth(1)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(12)[-3:] == b"100"
            held.go()
            response = rest(client)
        with connected(service.port) as client:
            client.sendall(request[:-1])
            client.shutdown(socket.SHUT_WR)
            assert b"200" not in rest(client)
    assert statuses(response) == [200]
    assert b'"label":"lymphocyte"' in response
    assert response.endswith(b'"errors":[]}')


def test_23_a_client_that_leaves_the_queue_frees_its_place_and_its_bytes(
    tmp_path: Path,
) -> None:
    body = png(64) + bytes(700_000)
    request = head("POST /predict HTTP/1.1", "Content-Type: image/png", f"Content-Length: {len(body)}") + body
    arguments = ("--max-queue", "1", "--max-reserved-mib", "1", "--max-body-mib", "1")
    with ThreadPoolExecutor() as pool, faulty(tmp_path, *arguments) as service, service.client() as client:
        held = Held(service, tmp_path, pool)
        with socket.create_connection(("127.0.0.1", service.port)) as leaving:
            leaving.sendall(request)
            held.wait_for_depth(1)
            assert alone(client, body).status_code == 429
        held.wait_for_depth(0)
        staying = pool.submit(alone, client, body)
        held.wait_for_depth(1)
        held.go()
        assert staying.result().status_code == 200
        assert held.metric('leuko_predictions_total{label="lymphocyte"}') == 1
