"""`/v2`, with Triton's own clients and with the requests of KServe's client."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from starlette.testclient import TestClient
from tritonclient.utils import InferenceServerException

from app.edge.keys import add_key
from tests.fake_classifier import png
from tests.fakes import CUT, GREYS, LOCAL, HeldClassifier, build, serving
from tests.running import Running

LABELS = [b"eosinophil", b"lymphocyte", b"monocyte", b"neutrophil"]
INFER = "/v2/models/fake/infer"


@pytest.fixture(scope="module")
def tritons(service: Running) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(service.address.removeprefix("http://"))
    yield client
    client.close()


def images(*data: bytes) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(data)], "BYTES")
    tensor.set_data_from_numpy(np.array(data, object))
    return tensor


CELLS = [png(grey) for grey in GREYS]


def test_triton_s_client_finds_the_server_and_its_model(tritons: triton.InferenceServerClient) -> None:
    assert tritons.is_server_live()
    assert tritons.is_server_ready()
    assert tritons.is_model_ready("fake")
    assert tritons.is_model_ready("fake", "1.2")
    assert not tritons.is_model_ready("other")
    assert tritons.get_server_metadata()["name"] == "leuko"
    metadata = tritons.get_model_metadata("fake", "1.2")
    assert (metadata["name"], metadata["versions"]) == ("fake", ["1.2"])
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]


def test_triton_s_client_gets_numbers_and_labels(
    tritons: triton.InferenceServerClient, service: Running
) -> None:
    result = tritons.infer("fake", [images(*CELLS)], request_id="7")
    assert list(result.as_numpy("label")) == LABELS
    assert result.get_response()["id"] == "7"
    files = [("files", data) for data in CELLS]
    predicted = httpx.post(f"{service.address}/predict", files=files).json()["predictions"]
    expected = [[*prediction["probabilities"].values()] for prediction in predicted]
    assert result.as_numpy("probabilities") == pytest.approx(np.array(expected), abs=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_s_client_may_send_a_batch_of_single_elements(
    tritons: triton.InferenceServerClient, binary: bool
) -> None:
    tensor = triton.InferInput("image", [2, 1], "BYTES")
    data = CELLS[:2] if binary else [base64.b64encode(cell) for cell in CELLS[:2]]
    tensor.set_data_from_numpy(np.array(data, object).reshape(2, 1), binary_data=binary)
    result = tritons.infer("fake", [tensor])
    assert [as_bytes(label) for label in result.as_numpy("label")] == LABELS[:2]
    tensor.set_shape([1, 2])
    with pytest.raises(InferenceServerException, match=r"\[1, 2\] is neither \[N\] nor \[N, 1\]"):
        tritons.infer("fake", [tensor])


@pytest.mark.parametrize("binary", [True, False])
def test_triton_s_client_chooses_outputs(tritons: triton.InferenceServerClient, binary: bool) -> None:
    names = ("confidence", "ood_score", "review", "label", "probabilities")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    result = tritons.infer("fake", [images(*CELLS[:2])], outputs=outputs)
    assert result.as_numpy("confidence") == pytest.approx([0.7, 0.7])
    assert result.as_numpy("ood_score") == pytest.approx([1.5, 1.5])
    assert result.as_numpy("review").tolist() == [True, True]
    assert [as_bytes(label) for label in result.as_numpy("label")] == LABELS[:2]
    assert result.as_numpy("probabilities").shape == (2, 4)


def as_bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()


@pytest.mark.parametrize("binary", [True, False])
def test_triton_s_client_gets_the_best_classes(tritons: triton.InferenceServerClient, binary: bool) -> None:
    output = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
    result = tritons.infer("fake", [images(CELLS[3])], outputs=[output])
    ((best, second),) = result.as_numpy("probabilities")
    assert as_bytes(best) == b"0.700000:3:neutrophil"
    assert as_bytes(second).startswith(b"0.100000:0:")


@pytest.mark.parametrize("sent", ["gzip", "deflate", None])
@pytest.mark.parametrize("wanted", ["gzip", "deflate", None])
def test_triton_s_client_compresses(
    tritons: triton.InferenceServerClient, sent: str | None, wanted: str | None
) -> None:
    result = tritons.infer(
        "fake",
        [images(*CELLS)],
        request_compression_algorithm=sent,
        response_compression_algorithm=wanted,
    )
    assert list(result.as_numpy("label")) == LABELS


def test_triton_s_client_infers_asynchronously(tritons: triton.InferenceServerClient) -> None:
    pending = [tritons.async_infer("fake", [images(image)]) for image in CELLS]
    assert [request.get_result().as_numpy("label")[0] for request in pending] == LABELS


def test_triton_s_asynchronous_client_gets_labels(service: Running) -> None:
    async def ask() -> Any:
        async with triton_aio.InferenceServerClient(service.address.removeprefix("http://")) as client:
            assert await client.is_model_ready("fake")
            return (await client.infer("fake", [images(*CELLS)])).as_numpy("label")

    assert list(asyncio.run(ask())) == LABELS


@pytest.mark.parametrize(
    ("model", "version", "data", "message"),
    [
        ("other", "", CELLS, "no model of this name"),
        ("fake", "9", CELLS, "no such version"),
        ("fake", "", [CELLS[0], CUT], "image 1: the PNG data is truncated"),
        ("fake", "", [b"MZ"], "image 0: the image format is not supported; use JPEG"),
    ],
)
def test_triton_s_client_raises_the_error_of_the_service(
    tritons: triton.InferenceServerClient, model: str, version: str, data: list[bytes], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message):
        tritons.infer(model, [images(*data)], model_version=version)


def test_kserve_s_client_gets_an_answer(service: Running) -> None:
    # InferenceRESTClient: GET …/ready, then POST …/infer with JSON alone.
    data = [base64.b64encode(image).decode() for image in CELLS]
    request = {
        "id": "a",
        "model_name": "fake",
        "inputs": [{"name": "image", "shape": [4], "datatype": "BYTES", "data": data}],
        "parameters": {"content_type": "image"},
    }
    with service.client() as client:
        assert client.get("/v2/health/live").json() == {"live": True, "ready": True}
        assert client.get("/v2/models/fake/ready").json() == {"name": "fake", "ready": True}
        answer = client.post(INFER, json=request).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("fake", "1.2", "a")
    (label,) = (output["data"] for output in answer["outputs"] if output["name"] == "label")
    assert label == [name.decode() for name in LABELS]


# --- errors and readiness ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/v2/models/other", {}, 404),
        ("GET", "/v2/models/fake/versions/9/ready", {}, 404),
        ("GET", "/v2/nothing", {}, 404),
        ("PUT", INFER, {}, 405),
        ("POST", INFER, {"content": b"{"}, 400),
        ("POST", INFER, {"content": b"x", "headers": {"content-encoding": "gzip"}}, 400),
        ("POST", INFER, {"content": b"x", "headers": {"content-encoding": "br"}}, 415),
        ("POST", INFER, {"content": b"x", "headers": {"host": "a b"}}, 400),
    ],
)
def test_errors_have_the_protocol_s_format(
    client: TestClient, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    answer = client.request(method, path, **options)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert answer.headers["x-request-id"]


def test_more_images_than_the_limit_are_too_large() -> None:
    with serving(max_files=1) as client:
        data = [base64.b64encode(CELLS[0]).decode()] * 2
        body = {"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": data}]}
        answer = client.post(INFER, json=body)
    assert (answer.status_code, "at most 1" in answer.json()["error"]) == (413, True)


def test_a_service_that_is_not_ready_responds_503() -> None:
    app = build(HeldClassifier())
    client = TestClient(app, LOCAL)  # not entered, so its lifespan does not start and no model is loaded
    assert client.get("/v2").json()["name"] == "leuko"
    for path in ("/v2/health/ready", "/v2/models/fake/ready"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert client.get("/v2/health/live").status_code == 200
    answer = client.post(INFER, content=b"{}")
    assert (answer.status_code, list(answer.json())) == (503, ["error"])
    assert int(answer.headers["retry-after"]) > 0


def test_a_key_is_needed_for_inference_and_none_for_health(tmp_path: Path) -> None:
    predict = add_key(tmp_path / "keys", "lab", ["predict"])
    other = add_key(tmp_path / "keys", "ops", ["metrics"])
    body = {
        "inputs": [
            {
                "name": "image",
                "shape": [1],
                "datatype": "BYTES",
                "data": [base64.b64encode(CELLS[0]).decode()],
            }
        ]
    }
    with serving(keys=str(tmp_path / "keys")) as client:
        assert client.get("/v2/health/ready").status_code == 200
        for path in ("/v2", "/v2/models/fake"):
            assert client.get(path).status_code == 401
        refused = client.post(INFER, json=body)
        assert (refused.status_code, list(refused.json())) == (401, ["error"])
        statuses = [
            client.post(INFER, json=body, headers={"authorization": f"Bearer {key}"}).status_code
            for key in (predict, other)
        ]
    assert statuses == [200, 403]


def test_the_audit_log_has_the_images(tmp_path: Path) -> None:
    with serving(audit=str(tmp_path / "audit.jsonl")) as client:
        data = [base64.b64encode(image).decode() for image in CELLS[:2]]
        client.post(
            INFER, json={"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": data}]}
        )
        client.get("/v2/health/ready")
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["route"] == "/v2/models/{name}/infer"
    assert [image["label"] for image in entry["images"]] == ["eosinophil", "lymphocyte"]
