from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from httpx2 import Response
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message

from tests.fake_classifier import NAN, png
from tests.fakes import CUT, GREYS, HeldClassifier, caller, metric, serving, started, zipped
from tests.zips import pack

LABELS = ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]
EVENTS = {"accept": "text/event-stream"}
# Two of each class; one lymphocyte looks like a monocyte.
IMAGES = {
    f"TEST/{label.upper()}/_{photo}_{number}.png": png(grey)
    for number, (label, photo, grey) in enumerate(
        [
            *((label, photo, grey) for label, grey in zip(LABELS, GREYS, strict=True) for photo in (1, 2)),
            ("lymphocyte", 2, GREYS[2]),
        ]
    )
}
LABEL = "a.png,monocyte"
WRONG = "TEST/LYMPHOCYTE/_2_8.png"


def archive(client: TestClient, images: dict[str, bytes], **parts: str) -> Response:
    answer: Response = client.post(
        "/evaluate", files=[("archive", ("set.zip", zipped(images)))], data=parts or None
    )
    return answer


def files(client: TestClient, *names: str, **parts: str) -> Response:
    images = [("files", (name, png(GREYS[0]))) for name in names]
    answer: Response = client.post("/evaluate", files=images, data=parts or None)
    return answer


def problem(answer: Response, status: int, code: str) -> str:
    """Check the status and code of a problem; return its detail."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    detail: str = answer.json()["detail"]
    return detail


def parse(stream: str) -> list[tuple[str, Any]]:
    events = [
        dict(line.split(": ", 1) for line in event.splitlines()) for event in stream.split("\n\n") if event
    ]
    return [(event["event"], json.loads(event["data"])) for event in events]


def test_events_have_no_line_ends_but_their_own(client: TestClient) -> None:
    name = "monocyte/a\x85b\u2028c\u2029d.png"
    files = {"archive": ("set.zip", zipped({name: CUT, "monocyte/x.png": png(GREYS[2])}))}
    stream = client.post("/evaluate", files=files, headers=EVENTS).content.decode()
    assert stream.splitlines() == stream.split("\n")[:-1]
    assert [error["filename"] for error in parse(stream)[-1][1]["errors"]] == [name]


def test_a_uniform_bitmap_is_an_image_like_others(client: TestClient) -> None:
    blank = io.BytesIO()
    Image.new("RGB", (640, 480), (GREYS[3],) * 3).save(blank, "BMP")
    packed = pack(IMAGES | {"neutrophil/blank.bmp": blank.getvalue()})
    answer = client.post("/evaluate", files={"archive": ("set.zip", packed)})
    assert (answer.status_code, answer.json()["n"]) == (200, 10), answer.text


def test_an_archive_is_scored(client: TestClient) -> None:
    answer = archive(client, IMAGES)
    report = answer.json()
    assert answer.status_code == 200
    assert report["request_id"] == answer.headers["x-request-id"]
    assert report["model"]["name"] == "fake"
    assert report["labels"] == LABELS
    assert report["n"] == 9
    assert report["accuracy"] == pytest.approx(8 / 9)
    assert report["confusion_matrix"] == [[2, 0, 0, 0], [0, 2, 1, 0], [0, 0, 2, 0], [0, 0, 0, 2]]
    assert report["mse"] == pytest.approx(1 / 9)
    assert report["per_class"]["monocyte"]["precision"] == pytest.approx(2 / 3)
    assert report["brier"] is not None
    assert report["confidence_intervals"]["unit"] == "image"
    assert report["groups"] is None
    assert report["misclassified"] == [
        {"filename": WRONG, "label": "lymphocyte", "predicted": "monocyte", "confidence": 0.7}
    ]
    assert report["errors"] == []
    assert report["elapsed_seconds"] > 0
    assert report["images_per_second"] > 0


def test_a_picture_in_two_classes_is_warned_about_by_name(client: TestClient) -> None:
    (first, *_) = archive(client, IMAGES).json()["verification"]["warnings"]
    assert first.startswith("The same picture is in two classes: TEST/MONOCYTE/_1_4.png and ")
    assert WRONG in first


def test_the_versioned_path_answers_too(client: TestClient) -> None:
    body = [("archive", ("set.zip", zipped(IMAGES)))]
    assert client.post("/v1/evaluate", files=body).json()["n"] == 9


def test_images_that_cannot_be_classified_are_left_out_and_itemised(client: TestClient) -> None:
    report = archive(
        client, {"monocyte/a.png": CUT, **IMAGES, "monocyte/b.png": b"text", "monocyte/c.png": png(NAN)}
    ).json()
    assert report["n"] == 9
    assert [(error["index"], error["filename"], error["code"]) for error in report["errors"]] == [
        (0, "monocyte/a.png", "undecodable_image"),
        (10, "monocyte/b.png", "unsupported_format"),
        (11, "monocyte/c.png", "engine_error"),
    ]


def test_an_entry_with_a_wrong_checksum_is_left_out(client: TestClient) -> None:
    good = zipped(IMAGES)
    at = good.index(b"\x89PNG") + 30
    body = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    report = client.post("/evaluate", files=[("archive", ("set.zip", body))]).json()
    assert (report["n"], [error["index"] for error in report["errors"]]) == (8, [0])


def test_sources_come_from_a_pattern(client: TestClient) -> None:
    report = archive(client, IMAGES, group_pattern=r"_(\d+)_\d+\.png$").json()
    assert report["confidence_intervals"]["unit"] == "group"
    assert report["groups"]["n"] == 2


def test_sources_come_from_a_mapping(client: TestClient) -> None:
    groups = {name: f"photo {number // 3}" for number, name in enumerate(IMAGES)}
    assert archive(client, IMAGES, groups=json.dumps(groups)).json()["groups"]["n"] == 3


def test_sources_follow_the_images_that_are_left(client: TestClient) -> None:
    images = {"TEST/NEUTROPHIL/_9_0.png": CUT, **IMAGES}
    assert archive(client, images, group_pattern=r"_(\d+)_").json()["groups"]["n"] == 2


@pytest.mark.parametrize(
    "labels", ["a.png,EOSINOPHIL\nb.png,monocyte\n", '{"a.png": "eosinophil", "b.png": "Monocyte"}']
)
def test_files_are_scored_by_a_mapping_of_labels(client: TestClient, labels: str) -> None:
    report = files(client, "a.png", "b.png", labels=labels).json()
    assert report["n"] == 2
    assert [mistake["filename"] for mistake in report["misclassified"]] == ["b.png"]


def test_names_and_tables_of_other_systems_are_understood(client: TestClient) -> None:
    decomposed = {f"set/{label}s/u\u0308 1.png": png(grey) for label, grey in zip(LABELS, GREYS, strict=True)}
    rows = [f"set\\{label}s\\ü 1.png;Frau {number // 2}" for number, label in enumerate(LABELS)]
    parts = [
        ("archive", ("set.zip", zipped(decomposed))),
        ("groups", ("groups.csv", "\r\n".join(["file;source", *rows, ";"]).encode("utf-16"))),
    ]
    report = client.post("/evaluate", files=parts).json()
    assert (report["n"], report["accuracy"], report["groups"]["n"]) == (4, 1.0, 2)
    labels = "Datei;Klasse\nü.png;Monocytes\n"
    assert files(client, "u\u0308.png", labels=labels).json()["per_class"]["monocyte"]["support"] == 1
    assert "the same file name" in problem(files(client, "ü", "u\u0308", labels="ü,a"), 422, "bad_labels")


@pytest.mark.parametrize(
    ("names", "parts", "code", "complaint"),
    [
        (["a.png"], {}, "bad_labels", "the part labels is missing"),
        (["a.png", "b.png"], {"labels": LABEL}, "bad_labels", "1 of 2 files have no label"),
        (["a.png"], {"labels": "a.png,basophil"}, "bad_labels", "labels[0] is none of eosinophil"),
        (["a.png", "a.png"], {"labels": LABEL}, "bad_labels", "the same file name"),
        (["a.png"], {"labels": "{"}, "bad_labels", "not a JSON object"),
        (["a.png"], {"labels": LABEL, "groups": "b.png,1"}, "bad_labels", "missing from the groups"),
        (["a.png"], {"labels": LABEL, "group_pattern": "("}, "bad_labels", "not a regular expression"),
        (["a.png"], {"labels": LABEL, "groups": LABEL, "group_pattern": "(a)"}, "unusable", "not both"),
    ],
)
def test_labels_and_groups_that_do_not_fit_are_refused(
    client: TestClient, names: list[str], parts: dict[str, str], code: str, complaint: str
) -> None:
    assert complaint in problem(files(client, *names, **parts), 422, code)


def test_neither_archive_nor_files_is_unusable_and_so_are_both(client: TestClient) -> None:
    problem(client.post("/evaluate", files=[("labels", ("l.csv", b"a,b"))]), 422, "unusable")
    both = [("archive", ("a.zip", zipped(IMAGES))), ("files", ("a.png", png(1)))]
    problem(client.post("/evaluate", files=both), 422, "unusable")


def test_labels_beside_an_archive_are_refused(client: TestClient) -> None:
    assert "folders name the classes" in problem(archive(client, IMAGES, labels="a,b"), 422, "unusable")


@pytest.mark.parametrize("images", [{}, {"a.png": png(1)}, {"../monocyte/a.png": png(1)}])
def test_a_wrong_archive_is_refused_whole(client: TestClient, images: dict[str, bytes]) -> None:
    problem(archive(client, images), 422, "bad_archive")


def test_an_invalid_archive_is_refused(client: TestClient) -> None:
    assert client.post("/evaluate", files=[("archive", ("a.zip", b"PK"))]).status_code == 422
    assert client.post("/evaluate", json={}).status_code == 415


def test_an_archive_with_wrong_sizes_is_refused_whole(client: TestClient) -> None:
    from io import BytesIO
    from zipfile import ZIP_DEFLATED, ZipFile

    file = BytesIO()
    with ZipFile(file, "w", ZIP_DEFLATED) as zip_file:
        zip_file.writestr("monocyte/a.png", bytes(1000))
        zip_file.filelist[0].file_size = 900
    problem(client.post("/evaluate", files=[("archive", ("a.zip", file.getvalue()))]), 413, "too_large")


def test_no_usable_image_at_all_is_unusable(client: TestClient) -> None:
    detail = problem(archive(client, {"monocyte/a.png": CUT, "monocyte/b.png": CUT}), 422, "unusable")
    assert detail.startswith("none of 2 images")


def test_more_entries_than_allowed_are_too_many() -> None:
    with serving(max_archive_entries=8) as client:
        problem(archive(client, IMAGES), 413, "too_large")
        names = [f"{number}.png" for number in range(9)]
        problem(files(client, *names, labels="a,b"), 413, "too_large")


def test_an_evaluation_past_its_deadline_is_cancelled() -> None:
    classifier = HeldClassifier()
    classifier.hold()
    with serving(classifier, evaluate_deadline_s=0.05) as client:
        answer = archive(client, IMAGES)
        classifier.go()
    problem(answer, 504, "deadline_passed")


def test_an_evaluation_holds_few_images_at_a_time_however_many_there_are() -> None:
    classifier = HeldClassifier()

    async def scenario() -> None:
        async with started(classifier, decode_workers=1) as app, caller(app) as client:
            classifier.hold()
            body = zipped({f"monocyte/{number}.png": png(1) for number in range(200)})
            task = asyncio.create_task(client.post("/evaluate", files=[("archive", ("a.zip", body))]))
            await asyncio.to_thread(classifier.busy)
            tasks = len(asyncio.all_tasks())
            assert tasks < 20
            answer = asyncio.create_task(
                client.post("/predict", content=png(1), headers={"content-type": "image/png"})
            )
            classifier.go()
            assert (await answer).status_code == 200
            assert (await task).json()["n"] == 200

    asyncio.run(scenario())


def test_progress_is_streamed_and_then_the_result(client: TestClient) -> None:
    body = [("archive", ("set.zip", zipped(IMAGES)))]
    answer = client.post("/evaluate", files=body, headers=EVENTS)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *progress, (last, result) = parse(answer.text)
    assert {name for name, _ in progress} == {"progress"}
    assert progress[0][1] == {"done": 0, "total": 9, "images_per_second": 0.0}
    assert (progress[-1][1]["done"], progress[-1][1]["total"]) == (9, 9)
    assert (last, result["n"], result["request_id"]) == ("result", 9, answer.headers["x-request-id"])


def test_a_failure_after_the_start_is_an_event(client: TestClient) -> None:
    body = [("archive", ("set.zip", zipped({"monocyte/a.png": CUT})))]
    events = parse(client.post("/evaluate", files=body, headers=EVENTS).text)
    name, data = events[-1]
    assert (name, data["status"], data["code"]) == ("error", 422, "unusable")


def test_a_failure_before_the_start_is_a_problem(client: TestClient) -> None:
    problem(client.post("/evaluate", files=[("archive", ("a.zip", b""))], headers=EVENTS), 422, "bad_archive")


@pytest.mark.parametrize("streamed", [True, False])
def test_a_disconnect_cancels_the_evaluation(streamed: bool) -> None:
    classifier = HeldClassifier()
    body = zipped({f"monocyte/{number}.png": png(1) for number in range(200)})
    form = b'--x\r\nContent-Disposition: form-data; name="archive"\r\n\r\n' + body + b"\r\n--x--"

    async def scenario() -> None:
        async with started(classifier) as app:
            classifier.hold()
            gone = asyncio.Event()
            messages = iter([{"type": "http.request", "body": form, "more_body": False}])

            async def receive() -> Message:
                for message in messages:
                    return message
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(_: Message) -> None:
                pass

            headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
            scope = {
                "type": "http",
                "http_version": "1.1",
                "method": "POST",
                "path": "/evaluate",
                "query_string": b"",
            }
            accept = [(b"accept", b"text/event-stream")] if streamed else []
            call = app(scope | {"root_path": "", "headers": headers + accept}, receive, send)
            task = asyncio.create_task(call)
            await asyncio.to_thread(classifier.busy)
            gone.set()
            await task
            classifier.go()

    asyncio.run(scenario())
    assert sum(classifier.batches) < 20


def test_images_of_an_evaluation_are_counted_but_are_no_predictions() -> None:
    with serving() as client:
        archive(client, {"monocyte/a.png": CUT, **IMAGES})
        assert metric(client, 'leuko_images_total{outcome="ok"}') == 9
        assert metric(client, 'leuko_images_total{outcome="undecodable_image"}') == 1
        assert metric(client, 'leuko_predictions_total{label="monocyte"}') == 0


def judge(client: TestClient, **outcomes: Any) -> Response:
    answer: Response = client.post("/evaluate/predictions", json=outcomes)
    return answer


def test_predictions_already_made_are_scored(client: TestClient) -> None:
    report = judge(client, labels=["Eosinophil", 1, "monocyte"], predictions=[0, "lymphocyte", 3]).json()
    assert report["n"] == 3
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert report["log_loss"] is None
    assert report["per_class"]["neutrophil"]["recall"] is None
    assert "misclassified" not in report


def test_probabilities_already_made_are_scored(client: TestClient) -> None:
    rows = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1]]
    report = judge(client, labels=[0, 2], probabilities=rows, groups=["photo 1", "photo 2"]).json()
    assert (report["accuracy"], report["groups"]["n"]) == (0.5, 2)
    assert report["log_loss"] > 0


@pytest.mark.parametrize(
    ("outcomes", "complaint"),
    [
        ({"labels": [0, "basophil"], "predictions": [0, 0]}, "labels[1] is none of"),
        ({"labels": [0], "predictions": ["basophil"]}, "predictions[0] is none of"),
        ({"labels": [0, 4], "predictions": [0, 0]}, "labels[1] is 4"),
        ({"labels": [0], "predictions": [-1]}, "predictions[0] is -1"),
        ({"labels": [0], "predictions": [0, 1]}, "2 predictions for 1 labels"),
        ({"labels": [0]}, "neither predictions nor probabilities"),
        ({"labels": [0], "probabilities": [[1, 0, 0]]}, "probabilities[0] is not 4 numbers"),
        ({"labels": [0], "probabilities": [[1, 1, 0, 0]]}, "sums to 2"),
        ({"labels": [0], "predictions": [0], "groups": []}, "0 groups for 1 labels"),
        ({"labels": [10**30], "predictions": [0]}, "labels"),
    ],
)
def test_invalid_outcomes_are_refused_with_their_position(
    client: TestClient, outcomes: dict[str, Any], complaint: str
) -> None:
    assert complaint in problem(judge(client, **outcomes), 422, "bad_labels")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"labels": [NaN], "predictions": [0]}',
        b"[" * 100_000,
        b'{"labels": [true]}',
        b"\xff",
    ],
)
def test_a_body_that_violates_the_schema_is_invalid(client: TestClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = client.post("/evaluate/predictions", content=body, headers=headers)
    problem(answer, 422, "invalid_request")
    assert answer.json()["errors"]


def test_predictions_in_another_format_are_not_accepted(client: TestClient) -> None:
    problem(client.post("/evaluate/predictions", content=b"a,b"), 415, "unsupported_format")


def test_fields_that_a_user_left_empty_count_as_not_sent(client: TestClient) -> None:
    empty: dict[str, Any] = dict.fromkeys(("labels", "groups", "group_pattern"), (None, ""))
    archive: dict[str, Any] = {"archive": ("a.zip", zipped({"monocyte/a.png": png(GREYS[2])}))}
    for unchosen in ((None, ""), ("", b"")):
        assert client.post("/evaluate", files={**empty, **archive, "files": unchosen}).json()["n"] == 1
    files: dict[str, Any] = {"files": ("a.png", png(GREYS[2])), "labels": (None, '{"a.png": "monocyte"}')}
    assert client.post("/evaluate", files={**empty, **files, "archive": (None, "")}).json()["n"] == 1
    assert client.post("/evaluate", files={"archive": ("a.zip", b"")}).json()["code"] == "bad_archive"
