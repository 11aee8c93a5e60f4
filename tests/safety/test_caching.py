"""Scenario 57: no answer about a specimen or an image may be kept by a browser or a proxy."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.edge.keys import add_key
from tests.fake_classifier import png
from tests.fakes import zipped
from tests.proxying import here, proxying
from tests.running import FAKE, Running, running
from tests.safety.raw import rest

IMAGE = {"files": ("cell.png", png(64))}
ARCHIVE = {"archive": ("all.zip", zipped({"monocyte/1.png": png(1), "lymphocyte/2.png": png(2)}))}
COUNTED = {"predictions": [{"label": "monocyte"}], "specimen": "S-1"}
SCORED = {"labels": ["monocyte"], "predictions": ["monocyte"]}
TENSOR = {
    "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}],
}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str]]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    secret = add_key(keys, "lab", ["predict", "evaluate", "metrics"])
    with running(FAKE, "--keys", str(keys), "--max-image-mib", "1") as service:
        yield service, secret


def answers(client: httpx.Client) -> list[httpx.Response]:
    """Return answers of every kind that concerns a specimen or an image, good and bad."""
    post = client.post
    model = client.get("/model").json()["name"]
    infer = f"/v2/models/{model}/infer"
    return [
        post("/predict", files=IMAGE),
        post("/v1/predict", content=png(1), headers={"Content-Type": "image/png"}),
        post("/predict", files={"files": ("cell.png", b"none")}),
        post("/predict", files={"files": ("cell.png", bytes(2**21))}),
        post("/predict", content=b"x", headers={"Content-Type": "text/plain"}),
        post("/predict", files=IMAGE, params={"model": "none"}),
        post("/predict", files=IMAGE, headers={"Authorization": "Bearer none"}),
        client.get("/predict"),
        *(
            post("/differential", json=COUNTED, headers={"Accept": accept})
            for accept in ("*/*", "application/fhir+json", "application/hl7-v2", "text/csv", "image/png")
        ),
        post("/differential", json={"predictions": 1}),
        post("/evaluate", files=ARCHIVE),
        post("/evaluate", files=ARCHIVE, headers={"Accept": "text/event-stream"}),
        post("/evaluate", files={"archive": ("all.zip", b"none")}),
        post("/evaluate/predictions", json=SCORED),
        post("/evaluate/predictions", json={}),
        post(infer, json=TENSOR),
        post(infer, json={"inputs": 1}),
        post(infer, content=json.dumps(TENSOR).encode()[:-1], headers={"Content-Type": "application/json"}),
        client.get("/model"),
        client.get("/metrics"),
        client.get("/nothing"),
    ]


def test_57_answers_about_specimens_and_images_are_not_stored(keyed: tuple[Running, str]) -> None:
    service, secret = keyed
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=service.address, headers=headers, timeout=60) as client:
        found = answers(client)
    assert {answer.status_code for answer in found} >= {200, 400, 401, 404, 405, 413, 415, 422}
    assert [answer for answer in found if answer.headers.get_list("cache-control") != ["no-store"]] == []


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_57_the_answer_to_bytes_that_are_no_request_is_not_stored(
    keyed: tuple[Running, str], sent: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", keyed[0].port)) as client:
        client.sendall(sent)
        received = rest(client)
    assert received.startswith(b"HTTP/1.1 400")
    assert received.lower().count(b"cache-control: no-store\r\n") == 1


def test_57_the_page_and_its_files_are_revalidated(keyed: tuple[Running, str]) -> None:
    for path in ("/", "/page/page.js", "/page/page.css", "/docs", "/swagger/init.js"):
        answer = httpx.get(keyed[0].address + path)
        assert (answer.status_code, answer.headers.get_list("cache-control")) == (200, ["no-cache"])


@here
def test_57_nginx_keeps_the_header_and_adds_it_to_its_own_answers(
    keyed: tuple[Running, str], tmp_path: Path
) -> None:
    service, secret = keyed
    changes = {"client_max_body_size 512m": "client_max_body_size 1m"}
    with proxying(tmp_path, service.port, changes) as proxy, proxy.client(secret) as client:
        sent = client.post("/predict", files=IMAGE)
        large = client.post("/predict", content=bytes(2**21))
    assert [sent.status_code, large.status_code] == [200, 413]
    for answer in (sent, large):
        assert answer.headers.get_list("cache-control") == ["no-store"]
        assert answer.headers["strict-transport-security"]
