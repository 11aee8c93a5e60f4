from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from typing import Any

import httpx
import pytest
from httpx2 import Response
from starlette.testclient import TestClient
from starlette.types import Message, Scope

from tests.fake_classifier import NAN, png
from tests.fakes import CUT, GREYS, POISON, HeldClassifier, caller, metric, serving, started

IMAGE = {"content-type": "image/png"}
LABELS = ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]


def upload(client: TestClient, *images: bytes, url: str = "/predict") -> Response:
    answer: Response = client.post(
        url, files=[("files", (f"{i}.png", data)) for i, data in enumerate(images)]
    )
    return answer


def bare(client: TestClient, image: bytes, url: str = "/predict") -> Response:
    answer: Response = client.post(url, content=image, headers=IMAGE)
    return answer


def test_a_bare_image_is_classified(client: TestClient) -> None:
    image = png(GREYS[3])
    answer = bare(client, image)
    assert answer.status_code == 200
    assert answer.json() == {
        "request_id": answer.headers["x-request-id"],
        "model": {"name": "fake", "version": "1.2", "sha256": "f" * 64},
        "predictions": [
            {
                "index": 0,
                "filename": None,
                "image_sha256": hashlib.sha256(image).hexdigest(),
                "label": "neutrophil",
                "confidence": 0.7,
                "probabilities": {"eosinophil": 0.1, "lymphocyte": 0.1, "monocyte": 0.1, "neutrophil": 0.7},
                "ood_score": 1.5,
                "review": True,
                "review_reasons": ["out_of_distribution"],
                "frame": {"left": 0, "top": 0, "width": 8, "height": 6, "nucleus": False},
                "cam": None,
            }
        ],
        "errors": [],
    }


def test_several_images_are_answered_in_order(client: TestClient) -> None:
    predictions = upload(client, *map(png, GREYS)).json()["predictions"]
    assert [(each["index"], each["filename"], each["label"]) for each in predictions] == [
        (index, f"{index}.png", label) for index, label in enumerate(LABELS)
    ]


@pytest.mark.parametrize("path", ["/predict", "/v1/predict"])
@pytest.mark.parametrize(
    "images", [[png(GREYS[3])], [png(GREYS[0]), CUT], [CUT]], ids=["good", "mixed", "bad"]
)
def test_a_request_without_a_query_is_answered_as_one_with_the_defaults(
    client: TestClient, path: str, images: list[bytes]
) -> None:
    client.headers["x-request-id"] = "same"
    plain, asked = (upload(client, *images, url=url) for url in (path, f"{path}?cells=one"))
    assert (plain.status_code, plain.content) == (asked.status_code, asked.content)
    assert plain.headers == asked.headers


def test_the_versioned_path_answers_too(client: TestClient) -> None:
    assert bare(client, png(1), "/v1/predict").json()["predictions"]


def test_an_activation_map_is_returned_only_on_request(client: TestClient) -> None:
    cam = bare(client, png(1), "/predict?explain=cam").json()["predictions"][0]["cam"]
    assert cam["shape"] == [7, 7]
    assert [len(row) for row in cam["values"]] == [7] * 7
    assert all(0 <= value <= 1 for row in cam["values"] for value in row)


def test_an_unknown_explanation_is_refused_by_name(client: TestClient) -> None:
    answer = bare(client, png(1), "/predict?explain=saliency")
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_request"
    assert answer.json()["errors"][0]["field"] == "query.explain"


def test_a_bad_image_among_good_ones_is_itemised(client: TestClient) -> None:
    answer = upload(client, png(GREYS[0]), CUT, b"<svg/>", png(NAN), png(GREYS[1]))
    assert answer.status_code == 200
    assert [prediction["index"] for prediction in answer.json()["predictions"]] == [0, 4]
    faults = [
        (error["index"], error["filename"], error["status"], error["code"])
        for error in answer.json()["errors"]
    ]
    assert faults == [
        (1, "1.png", 422, "undecodable_image"),
        (2, "2.png", 415, "unsupported_format"),
        (3, "3.png", 500, "engine_error"),
    ]


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [(CUT, 422, "undecodable_image"), (b"", 422, "undecodable_image"), (b"%PDF", 415, "unsupported_format")],
)
def test_a_single_bad_image_has_its_own_status(
    client: TestClient, image: bytes, status: int, code: str
) -> None:
    for answer in (bare(client, image), upload(client, image)):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == code
        assert [error["index"] for error in answer.json()["errors"]] == [0]


def test_if_all_images_are_bad_the_status_is_the_first_one_s_and_all_are_listed(client: TestClient) -> None:
    answer = upload(client, b"%PDF", CUT)
    assert answer.status_code == 415
    assert [error["code"] for error in answer.json()["errors"]] == ["unsupported_format", "undecodable_image"]


def test_an_image_at_which_the_engine_raises_fails_alone(client: TestClient) -> None:
    answer = upload(client, png(GREYS[0]), png(POISON), png(GREYS[1])).json()
    assert [prediction["index"] for prediction in answer["predictions"]] == [0, 2]
    assert [(error["index"], error["code"]) for error in answer["errors"]] == [(1, "engine_error")]


def test_a_body_that_is_neither_form_nor_image_is_not_accepted(client: TestClient) -> None:
    assert client.post("/predict", json={"image": "aGk="}).status_code == 415
    assert client.post("/predict", content=png(1)).status_code == 415


def test_a_form_without_files_is_refused_with_the_accepted_names(client: TestClient) -> None:
    answer = client.post("/predict", files=[("image", ("a.png", png(1)))])
    assert (answer.status_code, answer.json()["detail"]) == (422, "only parts named files are accepted")


def test_a_broken_form_is_malformed(client: TestClient) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post("/predict", content=b"--y", headers=headers).status_code == 400


def test_more_files_than_allowed_are_too_many() -> None:
    with serving(max_files=2) as client:
        assert upload(client, png(1), png(1)).status_code == 200
        assert upload(client, png(1), png(1), png(1)).status_code == 413


def test_images_over_the_limits_are_too_large() -> None:
    with serving(max_pixels=40, max_image_mib=1) as client:
        assert bare(client, png(1)).status_code == 413
        assert bare(client, bytes(2**20 + 1)).status_code == 413


def test_a_full_queue_refuses_at_once_and_admitted_requests_are_answered() -> None:
    classifier = HeldClassifier()

    async def scenario() -> tuple[httpx.Response, httpx.Response]:
        async with started(classifier, max_queue=2, max_batch=1) as app, caller(app) as client:
            classifier.hold()
            first = asyncio.create_task(client.post("/predict", content=png(1), headers=IMAGE))
            await asyncio.to_thread(classifier.busy)
            files = [("files", ("a.png", png(1))) for _ in range(2)]
            second = asyncio.create_task(client.post("/predict", files=files))
            while app.state.lifecycle.service.batcher.depth < 2:
                await asyncio.sleep(0)
            refused = await client.post("/predict", content=png(1), headers=IMAGE)
            classifier.go()
            assert (await first).status_code == 200
            return refused, await second

    refused, admitted = asyncio.run(scenario())
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert len(admitted.json()["predictions"]) == 2


def test_an_image_whose_deadline_passes_is_not_answered_late() -> None:
    classifier = HeldClassifier()
    classifier.hold()
    with serving(classifier, deadline_s=0.05) as client:
        answer = bare(client, png(1))
        classifier.go()
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_passed")


def test_a_disconnect_removes_the_image_from_the_queue() -> None:
    classifier = HeldClassifier()

    async def scenario() -> None:
        async with started(classifier, max_batch=1) as app:
            classifier.hold()
            async with caller(app) as client:
                first = asyncio.create_task(client.post("/predict", content=png(1), headers=IMAGE))
                await asyncio.to_thread(classifier.busy)
                batcher = app.state.lifecycle.service.batcher
                gone = asyncio.Event()
                leaver = asyncio.create_task(app(scope(), receiving(png(2), gone), ignore))
                while not batcher.depth:
                    await asyncio.sleep(0)
                gone.set()
                await leaver
                assert batcher.depth == 0
                classifier.go()
                assert (await first).status_code == 200

    asyncio.run(scenario())
    assert classifier.batches == [1]


def test_file_names_stay_out_of_logs_and_metrics(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving() as client:
        client.post("/predict", files=[("files", ("DOE_JANE.png", CUT)), ("files", ("DOE_JANE", png(1)))])
        client.post("/predict", content=b'--x\r\nDOE_JANE: "\r\n', headers={"content-type": FORM_X})
        assert "DOE" not in client.get("/metrics").text
    assert not [record for record in caplog.records if "DOE" in record.getMessage()]


def test_images_and_answers_are_counted() -> None:
    with serving() as client:
        upload(client, png(GREYS[0]), png(GREYS[0]), CUT)
        assert metric(client, 'leuko_images_total{outcome="ok"}') == 2
        assert metric(client, 'leuko_images_total{outcome="undecodable_image"}') == 1
        assert metric(client, 'leuko_predictions_total{label="eosinophil"}') == 2
        assert metric(client, 'leuko_prediction_confidence_bucket{le="0.8"}') == 2
        for stage in ("receive", "decode", "infer"):
            assert metric(client, f'leuko_stage_duration_seconds_count{{stage="{stage}"}}') >= 1
        assert metric(client, "leuko_queue_wait_seconds_count") == 3


def test_probabilities_are_valid_json_numbers(client: TestClient) -> None:
    def refuse(_: str) -> Any:
        raise AssertionError("NaN or Infinity in an answer")

    json.loads(upload(client, png(NAN), png(1)).text, parse_constant=refuse)


FORM_X = "multipart/form-data; boundary=x"


def scope() -> Scope:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"image/png"),
            (b"content-length", str(len(png(2))).encode()),
        ],
    }


def receiving(body: bytes, gone: asyncio.Event) -> Any:
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        for message in messages:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


async def ignore(_: Message) -> None:
    pass
