"""The configuration for nginx that is shipped, in front of a real service."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.edge.keys import add_key
from app.units import MIB
from benchmarks.client import MULTIPART, form
from tests.fake_classifier import png
from tests.fakes import zipped
from tests.proxying import NAME, Proxy, here, proxying
from tests.running import Running, free_port, wait_until
from tests.safety.faulty import GO, HOLD, faulty
from tests.safety.raw import answer, head, rest, statuses

pytestmark = here

MARK = "DOE-JANE"


@dataclass(frozen=True)
class Front:
    proxy: Proxy
    service: Running
    secret: str
    faults: Path

    def client(self) -> httpx.Client:
        return self.proxy.client(self.secret)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder, faults = tmp_path_factory.mktemp("nginx"), tmp_path_factory.mktemp("faults")
    secret = add_key(folder / "keys", "lab", ["predict", "evaluate"])
    changes = {"client_header_timeout 10s": "client_header_timeout 1s"}
    arguments = ("--keys", str(folder / "keys"), "--metrics", "open", "--max-requests", "1")
    with (
        faulty(faults, *arguments) as service,
        proxying(folder, service.port, changes) as proxy,
    ):
        yield Front(proxy, service, secret, faults)
        assert service.end() == 0
        assert "Traceback" not in "".join(service.log)


def test_predict_works_through_tls_and_keeps_the_request_id(front: Front) -> None:
    with front.client() as client:
        for _ in range(3):
            files = {"files": ("cell.png", png(64))}
            sent = client.post("/predict", files=files, headers={"x-request-id": "mine"})
            assert sent.json()["predictions"][0]["label"] == "lymphocyte"
            assert sent.headers["X-Request-ID"] == "mine"
            assert "max-age" in sent.headers["Strict-Transport-Security"]


def test_a_refusal_for_want_of_a_key_comes_through(front: Front) -> None:
    with front.proxy.client() as client:
        sent = client.post("/predict", content=png(0), headers={"content-type": "image/png"})
    assert (sent.status_code, sent.json()["code"]) == (401, "unauthenticated")
    assert sent.headers["WWW-Authenticate"] == "Bearer"


def test_plain_http_is_sent_to_https_and_other_names_are_not_served(front: Front) -> None:
    sent = httpx.get(f"http://127.0.0.1:{front.proxy.http}/model?a=b", headers={"host": "other"})
    assert (sent.status_code, sent.headers["Location"]) == (308, f"https://{NAME}/model?a=b")
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized"), front.proxy.connected("other.example.org"):
        pass


def test_events_of_an_evaluation_come_while_it_runs(front: Front) -> None:
    archive = {"archive": ("set.zip", zipped({"monocyte/a.png": png(HOLD)}))}
    events = []
    with (
        front.client() as client,
        client.stream("POST", "/evaluate", files=archive, headers={"accept": "text/event-stream"}) as sent,
    ):
        for line in sent.iter_lines():
            if line.startswith("event:"):
                events.append(line.split()[1])
                (front.faults / GO).touch()  # not before the first event is here
    assert (events[0], events[-1]) == ("progress", "result")


def test_a_slow_head_is_closed_by_nginx(front: Front) -> None:
    with front.proxy.connected() as client:
        client.sendall(head("GET /model HTTP/1.1")[:-2])
        assert statuses(rest(client)) in ([], [408])


def upload(front: Front, length: int) -> bytes:
    return head(
        "POST /predict HTTP/1.1",
        "Content-Type: image/png",
        f"Authorization: Bearer {front.secret}",
        f"Content-Length: {length}",
    ).replace(b"Host: localhost", f"Host: {NAME}".encode())


def test_a_body_over_the_limit_is_413_before_it_is_sent(front: Front) -> None:
    with front.proxy.connected() as client:
        client.sendall(upload(front, 512 * MIB + 1))
        received = answer(client)
    assert statuses(received) == [413]
    assert b"application/problem+json" in received


def test_a_slow_upload_does_not_reach_the_service(front: Front) -> None:
    with front.proxy.connected() as slow, front.client() as client:
        slow.sendall(upload(front, len(png(64))) + png(64)[:-1])
        # The service takes one request at a time; by these answers, nginx has seen the slow one too.
        for _ in range(3):
            sent = client.post("/predict", content=png(0), headers={"content-type": "image/png"})
            assert sent.status_code == 200
        slow.sendall(png(64)[-1:])
        assert statuses(answer(slow)) == [200]


def test_images_and_archives_are_not_put_into_files(front: Front) -> None:
    shutil.rmtree(front.proxy.folder / "bodies")  # where nginx would put them, or fail
    large, longer = png(64) + b"\xff" * 15 * MIB, png(64) + b"\xff" * 24 * MIB
    with front.client() as client:
        sent = client.post("/predict", content=large, headers={"content-type": "image/png"})
        assert sent.status_code == 200
        files = [("files", ("a.png", longer)), ("labels", ("labels.json", b'{"a.png": "lymphocyte"}'))]
        sent = client.post("/evaluate", files=files)
        assert (sent.status_code, "x-request-id" in sent.headers) == (413, True)
        two = client.post("/predict", content=form([large, large]), headers={"content-type": MULTIPART})
        assert two.status_code == 500
    (front.proxy.folder / "bodies").mkdir()


METRICS = "/metrics //metrics /x/../metrics /%6detrics /metrics?x /metrics#x /./metrics /metrics/ /v1/metrics"
CONTROLS = "%0a %0d %0d%0a %00 %7f %09 %1f %c2%85 %c2%9f"


@pytest.mark.parametrize("target", METRICS.split())
def test_metrics_are_not_for_the_outside(front: Front, target: str) -> None:
    assert httpx.get(f"{front.service.address}/metrics").status_code == 200
    with front.proxy.connected() as client:
        request = f"GET {target} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n"
        client.sendall(request.encode())
        received = rest(client)
    assert statuses(received)[0] in (401, 404)
    assert b"# HELP" not in received


@pytest.mark.parametrize("path", ["/metrics", "/predict", "/", "/v2/models/a/infer"])
@pytest.mark.parametrize("control", CONTROLS.split())
def test_38_a_control_character_in_a_path_goes_no_further_than_nginx(
    front: Front, path: str, control: str
) -> None:
    with front.client() as client:
        sent = client.get(path + control)
    assert (sent.status_code, "x-request-id" in sent.headers) == (400, False)
    if control != "%00":  # nginx itself has an answer to this one
        assert sent.json()["code"] == "malformed_request"


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 5",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
    ],
)
def test_an_ambiguous_length_goes_no_further_than_nginx(front: Front, framing: str) -> None:
    request = f"POST /predict HTTP/1.1\r\nHost: {NAME}\r\n{framing}\r\n\r\n0\r\n\r\n"
    with front.proxy.connected() as client:
        client.sendall(request.encode() + head("GET /healthz HTTP/1.1"))
        received = rest(client)
    assert statuses(received) in ([400], [501])
    assert b"x-request-id" not in received.lower()


def test_the_logs_say_nothing_of_whose_pictures_they_are(front: Front) -> None:
    headers = {"user-agent": MARK, "referer": f"https://{MARK}/", "cookie": MARK, "x-request-id": MARK}
    with front.client() as client:
        client.headers.update(headers)
        files = {"files": (f"{MARK}.png", png(64))}
        assert client.post("/predict", params={"patient": MARK}, files=files).status_code in (200, 422)
        assert client.get(f"/{MARK}").status_code == 404
    log = front.proxy.folder / "leuko.log"
    wait_until(lambda: '"route":"other","status":404' in log.read_text())
    assert '"route":"/predict"' in log.read_text()
    assert unmarked(front.proxy.folder)


def unmarked(folder: Path) -> bool:
    return not any(MARK in path.read_text() for path in folder.glob("*.log"))


def test_without_the_service_and_over_the_rate_the_answers_are_problems_too(tmp_path: Path) -> None:
    changes = {"rate=100r/s": "rate=1r/m", "burst=200": "burst=1"}
    with proxying(tmp_path, free_port(), changes) as proxy, proxy.client() as client:
        found = [client.get("/model", params={"patient": MARK}) for _ in range(3)]
        codes = [(sent.status_code, sent.json()["code"]) for sent in found]
        assert codes == [(503, "not_ready"), (503, "not_ready"), (429, "queue_full")]
        assert all(int(sent.headers["Retry-After"]) >= 1 for sent in found)
    assert unmarked(tmp_path)
