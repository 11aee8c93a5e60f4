"""Scenarios 17 and 18 of the safety plan: an evaluation among bad images, bad labels and bad names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from zipfile import ZIP_STORED

import httpx
import pytest
from PIL import Image

from tests.fake_classifier import png
from tests.fakes import CUT, GREYS
from tests.pictures import encode
from tests.running import Running, running
from tests.safety.unshaken import UNSHAKEN
from tests.zips import LABELS, pack

GOOD = {"neutrophil/good.png": png(GREYS[3])}


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(UNSHAKEN) as found:
        httpx.get(f"{found.address}/metrics")  # whose own series are there only from the second time on
        yield found


# --- 17: some corrupt -------------------------------------------------------------------------------


def counts(client: httpx.Client) -> dict[str, float]:
    """series → value of everything in the metrics that was ever counted."""
    lines = client.get("/metrics").text.splitlines()
    return {
        series: float(value)
        for series, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


def test_17_three_corrupt_images_of_a_hundred_are_itemised_excluded_and_counted(service: Running) -> None:
    images = {
        f"{label}/{number:02}.png": png(grey)
        for label, grey in zip(LABELS, GREYS, strict=True)
        for number in range(25)
    }
    cut, text, flipped = "eosinophil/07.png", "monocyte/00.png", "neutrophil/24.png"
    # A BMP has no checksum of its own: only the archive's tells that a pixel is another.
    bitmap = encode(Image.new("RGB", (8, 6), (GREYS[3],) * 3), "BMP")
    archive = bytearray(pack(images | {cut: CUT, text: b"no picture", flipped: bitmap}, ZIP_STORED))
    archive[archive.index(bitmap) + len(bitmap) - 1] ^= 1
    with service.client() as client:
        before = counts(client)
        answer = client.post("/evaluate", files={"archive": ("set.zip", bytes(archive))})
        after = counts(client)
    report = answer.json()
    assert answer.status_code == 200
    assert [(one["index"], one["filename"], one["status"]) for one in report["errors"]] == [
        (7, cut, 422),
        (50, text, 415),
        (99, flipped, 422),
    ]
    assert report["n"] == sum(map(sum, report["confusion_matrix"])) == 97
    assert [report["per_class"][label]["support"] for label in LABELS] == [24, 25, 24, 24]
    assert report["accuracy"] == 1.0
    assert _grown(before, after, "leuko_images_total") == {
        "ok": 97,
        "undecodable_image": 2,
        "unsupported_format": 1,
    }


def _grown(before: dict[str, float], after: dict[str, float], name: str) -> dict[str, float]:
    grown = {series: value - before.get(series, 0) for series, value in after.items() if name in series}
    return {series.split('"')[1]: value for series, value in grown.items() if value}


# --- 18: labels -------------------------------------------------------------------------------------

FORMULA = "=cmd|'/C calc'!A0"
HOSTILE = [
    FORMULA,
    "+1",
    "-1",
    "@SUM(1)",
    "\tmonocyte2",
    "a\nleuko_forged 1",
    'a"} 1\n#',
    "\x1b[2Jx",
    "é" * 500,
]


def evaluate_files(client: httpx.Client, labels: list[str]) -> httpx.Response:
    names = [f"{number}.png" for number in range(len(labels))]
    files: list[tuple[str, Any]] = [("files", (name, png(1))) for name in names]
    mapping = json.dumps(dict(zip(names, labels, strict=True)))
    return client.post("/evaluate", files=[*files, ("labels", ("labels.json", mapping))])


def judge(client: httpx.Client, labels: list[str], **more: Any) -> httpx.Response:
    outcomes = {"labels": labels, "predictions": [0] * len(labels)} | more
    return client.post("/evaluate/predictions", json=outcomes)


def foldered(client: httpx.Client, folders: list[str]) -> httpx.Response:
    archive = pack({f"{folder}/a.png": b"" for folder in folders})
    return client.post("/evaluate", files={"archive": ("set.zip", archive)})


def test_18_hostile_labels_are_refused_and_repeated_nowhere(service: Running) -> None:
    with service.client() as client:
        for label in HOSTILE:
            for ask in (judge, evaluate_files):
                answer = ask(client, ["monocyte", label])
                assert (answer.status_code, answer.json()["code"]) == (422, "bad_labels")
                assert "labels[1] is none of" in answer.json()["detail"]
                assert "cmd" not in answer.text
                assert label.strip() not in answer.text
        assert "forged" not in client.get("/metrics").text


def test_18_ten_thousand_labels_make_one_short_complaint_and_no_metric_series(service: Running) -> None:
    with service.client() as client:
        for ask in (judge, foldered):
            ask(client, HOSTILE[:1])
        before = counts(client)
        for ask in (judge, foldered):
            answer = ask(client, [f"{FORMULA}{number}".replace("/", "") for number in range(10_000)])
            assert answer.status_code == 422
            assert len(answer.content) < 1000
        assert counts(client).keys() == before.keys()


def test_18_ten_thousand_sources_and_file_names_make_no_metric_series(service: Running) -> None:
    images = {f"monocyte/={number}\n.png": png(160) for number in range(1000)}
    with service.client() as client:
        client.post("/evaluate", files={"archive": ("set.zip", pack(GOOD))})
        judge(client, ["monocyte"])
        before = counts(client)
        groups = [f"{FORMULA}{number}" for number in range(10_000)]
        assert judge(client, ["monocyte"] * 10_000, groups=groups).json()["groups"]["n"] == 10_000
        assert client.post("/evaluate", files={"archive": ("set.zip", pack(images))}).json()["n"] == 1000
        assert counts(client).keys() == before.keys()


def test_18_hostile_names_come_back_as_json_alone_and_never_reach_the_log() -> None:
    images = {f"{label}/=cmd\n\x1b[2J{number}.png": png(1) for number, label in enumerate(LABELS)}
    with running() as service:
        with service.client() as client:
            answer = client.post("/evaluate", files={"archive": ("=cmd.zip", pack(images))})
            judge(client, HOSTILE)
        assert service.end() == 0
    assert {one["filename"] for one in answer.json()["misclassified"]} == set(list(images)[1:])
    assert not any(raw in answer.content for raw in (b"\n", b"\x1b", b"\0"))
    assert not [line for line in service.log if "cmd" in line or "forged" in line or "\x1b" in line]
