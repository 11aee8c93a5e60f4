"""Web pages of other sites, in a browser on the same machine, and a service without keys."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from app.edge.keys import add_key
from benchmarks.client import MULTIPART, form
from leuko_client import Client
from tests.fake_classifier import png
from tests.running import FAKE, Running, running

TENSOR = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [b64encode(png(64)).decode()]}
INFER = json.dumps({"inputs": [TENSOR]}).encode()
JSON = {"content-type": "application/json"}
PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
EVIL = "http://evil.example"


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(FAKE) as service:
        yield service


@pytest.fixture(scope="module")
def infer(service: Running) -> str:
    name = httpx.get(f"{service.address}/model").json()["name"]
    return f"{service.address}/v2/models/{name}/infer"


def own(service: Running, **headers: str) -> dict[str, str]:
    """What a browser sends for the service's own page."""
    return {"origin": service.address, "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors", **headers}


FOREIGN = {
    "another site": {"origin": EVIL, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    "an old browser": {"origin": EVIL},
    "a request without Origin": {"sec-fetch-site": "cross-site"},
    "a frame or a file": {"origin": "null"},
    "another port": {"origin": "http://127.0.0.1:1", "sec-fetch-site": "same-site"},
    "another port without Origin": {"sec-fetch-site": "same-site"},
    "another name for loopback": {"origin": "http://localhost", "sec-fetch-site": "cross-site"},
    "a prefix of the name": {"origin": "http://127.0.0.1"},
    "a user name": {"origin": "http://127.0.0.1@evil.example"},
    "something unheard of": {"sec-fetch-site": "x"},
    "contradictions": {"origin": EVIL, "sec-fetch-site": "same-origin"},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_41_a_page_of_another_site_has_no_work_done(service: Running, infer: str, kind: str) -> None:
    url = service.address
    for sent in (
        httpx.post(infer, content=INFER, headers=FOREIGN[kind] | JSON),
        httpx.post(infer, content=INFER, headers=FOREIGN[kind] | {"content-type": "text/plain"}),
        httpx.post(infer, content=INFER, headers=FOREIGN[kind]),
        httpx.post(
            f"{url}/predict", content=form([png(64)]), headers=FOREIGN[kind] | {"content-type": MULTIPART}
        ),
        httpx.post(f"{url}/v1/evaluate", files={"archive": b""}, headers=FOREIGN[kind]),
        httpx.get(f"{url}/model", headers=FOREIGN[kind]),
        httpx.get(f"{url}/metrics", headers=FOREIGN[kind]),
    ):
        assert (sent.request.url.path, sent.status_code) == (sent.request.url.path, 403)
    assert sent.json()["code"] == "cross_site"
    # A link to the page may be anywhere.
    assert httpx.get(f"{url}/", headers=FOREIGN[kind]).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", MULTIPART, "x"]
)
def test_41_infer_takes_nothing_that_a_form_can_send(infer: str, kind: str) -> None:
    assert httpx.post(infer, content=INFER, headers={"content-type": kind}).status_code == 415


REBOUND = "evil.example localhost.evil.example 127.0.0.1.evil.example 0.0.0.0 10.0.0.7 [::] [::2] 127.0.0.256"


@pytest.mark.parametrize("host", REBOUND.split())
def test_41_a_name_that_resolves_to_the_service_is_refused_except_for_probes(
    service: Running, infer: str, host: str
) -> None:
    for port in ("", f":{service.port}"):
        headers = {"host": host + port, "origin": f"http://{host}{port}", "sec-fetch-site": "same-origin"}
        for path in ("/", "/model", "/metrics", "/docs", "/page/page.js", "/nowhere"):
            sent = httpx.get(service.address + path, headers=headers)
            assert (path, sent.status_code) == (path, 403)
        assert httpx.post(infer, content=INFER, headers=headers | JSON).status_code == 403
        for path in PROBES:  # Kubernetes asks the address of the pod
            assert httpx.get(service.address + path, headers={"host": host + port}).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.8.9.10:80", "[::1]:8000"])
def test_41_the_page_curl_and_clients_use_it_under_every_name_of_the_machine(
    service: Running, infer: str, host: str
) -> None:
    page = {"host": host, "origin": f"http://{host.lower()}", "sec-fetch-site": "same-origin"}
    typed = {"host": host, "sec-fetch-site": "none", "sec-fetch-mode": "navigate"}
    for headers in (page, typed, {"host": host}):
        assert httpx.get(f"{service.address}/", headers=headers).status_code == 200
        assert httpx.post(infer, content=INFER, headers=headers | JSON).status_code == 200
        files = {"files": ("cell.png", png(64))}
        assert httpx.post(f"{service.address}/predict", files=files, headers=headers).status_code == 200


def test_41_triton_s_client_the_python_client_and_a_body_without_a_type_work(
    service: Running, infer: str
) -> None:
    assert httpx.post(infer, content=INFER).status_code == 200
    with triton.InferenceServerClient(f"localhost:{service.port}") as client:
        image = triton.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([png(64)], object))
        result = client.infer(infer.split("/")[-2], [image])
        assert [*result.as_numpy("label")] == [b"lymphocyte"]
    with Client(service.address) as client_:
        assert client_.predict(png(64)).label == "lymphocyte"


def test_41_anywhere_answers_to_any_name_but_to_no_page_of_another_site() -> None:
    with running(FAKE, environ={"LEUKO_WITHOUT_KEYS": "anywhere"}) as service:
        url, any_name = f"{service.address}/predict", {"host": "leuko.example.org"}
        files = {"files": ("cell.png", png(64))}
        page = any_name | {"origin": "https://leuko.example.org", "sec-fetch-site": "same-origin"}
        assert httpx.post(url, files=files, headers=any_name).status_code == 200
        assert httpx.post(url, files=files, headers=page).status_code == 200
        assert httpx.post(url, files=files, headers=any_name | {"origin": EVIL}).status_code == 403


def test_41_with_keys_a_page_needs_a_key_and_nothing_else(tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys", "lab", ["predict"])
    with running(FAKE, "--keys", str(tmp_path / "keys")) as service:
        headers = {"host": "leuko.example.org", "origin": EVIL, "sec-fetch-site": "cross-site"}
        url, files = f"{service.address}/predict", {"files": ("cell.png", png(64))}
        assert httpx.post(url, files=files, headers=headers).status_code == 401
        headers["authorization"] = f"Bearer {secret}"
        assert httpx.post(url, files=files, headers=headers).status_code == 200
