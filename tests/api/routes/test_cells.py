"""`cells=all`: every leukocyte of a field through `/predict` and `/differential`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.fakes import CUT, metric, serving
from tests.fields import FOUR, FieldClassifier, field, field_png

NONE: tuple[str, ...] = ()  # a field without leukocytes
TWO = ("lymphocyte", "neutrophil")


def send(client: TestClient, *images: bytes, url: str = "/predict?cells=all", **options: Any) -> Any:
    files = [("files", (f"{number}.png", image)) for number, image in enumerate(images)]
    return client.post(url, files=files, **options)


def test_each_cell_is_a_prediction_of_its_own() -> None:
    image, sha256 = field_png(), hashlib.sha256(field_png()).hexdigest()
    with serving(FieldClassifier()) as client:
        answer = send(client, image).json()
    cells = answer["predictions"]
    assert [(cell["index"], cell["cell"], cell["filename"]) for cell in cells] == [
        (0, number, "0.png") for number in range(4)
    ]
    assert {cell["image_sha256"] for cell in cells} == {sha256}
    assert (answer["empty"], answer["errors"]) == ([], [])
    places = [(cell.x, cell.y, cell.radius) for cell in field()[1]]
    for cell in cells:
        frame = cell["frame"]
        x, y = frame["left"] + frame["width"] / 2, frame["top"] + frame["height"] / 2
        assert any((x - a) ** 2 + (y - b) ** 2 < r**2 for a, b, r in places)


def test_one_cell_is_the_default_and_has_no_number() -> None:
    with serving(FieldClassifier()) as client:
        one, same = (
            send(client, field_png(), url="/predict"),
            send(client, field_png(), url="/predict?cells=one"),
        )
    for answer in (one.json(), same.json()):
        [cell] = answer["predictions"]
        assert "cell" not in cell
        assert "empty" not in answer


def test_fields_without_cells_are_listed_beside_good_and_bad_ones() -> None:
    with serving(FieldClassifier()) as client:
        answer = send(client, field_png(NONE), field_png(TWO), CUT).json()
    assert answer["empty"] == [{"index": 0, "filename": "0.png"}]
    assert [(cell["index"], cell["cell"]) for cell in answer["predictions"]] == [(1, 0), (1, 1)]
    assert [problem["index"] for problem in answer["errors"]] == [2]


def test_only_fields_without_cells_are_an_answer_too() -> None:
    with serving(FieldClassifier()) as client:
        answer = send(client, field_png(NONE))
    assert answer.status_code == 200
    assert answer.json()["predictions"] == []


def test_more_cells_than_the_limit_are_413() -> None:
    with serving(FieldClassifier(), max_cells=3) as client:
        single, several = send(client, field_png()), send(client, field_png(TWO), field_png())
        assert client.get("/model").json()["limits"]["max_cells"] == 3
    assert single.status_code == 413
    assert single.json()["code"] == "too_large"
    assert "4 leukocytes; at most 3" in single.json()["detail"]
    assert several.status_code == 200
    assert [problem["status"] for problem in several.json()["errors"]] == [413]
    assert len(several.json()["predictions"]) == 2


def test_another_value_is_a_problem_that_names_the_parameter() -> None:
    with serving(FieldClassifier()) as client:
        answer = send(client, field_png(), url="/predict?cells=some")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "query.cells"


def test_each_cell_has_its_activation_map() -> None:
    with serving(FieldClassifier()) as client:
        answer = send(client, field_png(TWO), url="/predict?cells=all&explain=cam").json()
    assert [cell["cam"]["shape"] for cell in answer["predictions"]] == [[7, 7], [7, 7]]


def test_cells_go_through_the_network_in_batches_of_its_size() -> None:
    classifier = FieldClassifier()
    with serving(classifier, max_batch=3) as client:
        send(client, field_png())
    assert classifier.batches == [3, 1]


def test_metrics_and_the_audit_log_count_cells_and_images(tmp_path: Path) -> None:
    log = tmp_path / "audit"
    with serving(FieldClassifier(), audit=str(log), metrics="open") as client:
        send(client, field_png(), field_png(NONE))
        images = metric(client, 'leuko_images_total{outcome="ok"}')
        cells = sum(metric(client, f'leuko_predictions_total{{label="{label}"}}') for label in FOUR)
    assert (images, cells) == (2, 4)
    entries = json.loads(log.read_text().splitlines()[0])["images"]
    assert [entry.get("cell") for entry in entries] == [0, 1, 2, 3, None]
    assert entries[4] == {"sha256": hashlib.sha256(field_png(NONE)).hexdigest(), "cells": 0}


def test_a_differential_counts_the_cells() -> None:
    with serving(FieldClassifier()) as client:
        count = send(client, field_png(), field_png(NONE), url="/differential?cells=all").json()
        one = send(client, field_png(), url="/differential").json()
    assert (count["n"], sum(count["counts"].values()), one["n"]) == (4, 4, 1)
    assert [(cell["index"], cell["cell"]) for cell in count["review"]] == [(0, n) for n in range(4)]
    assert count["empty"] == [{"index": 1, "filename": "1.png"}]
    codes = {warning["code"] for warning in count["warnings"]}
    assert codes == {"few_cells", "classified_cells_only", "not_verified"}
    assert count["fingerprint"] != one["fingerprint"]


def test_a_differential_of_no_cells_is_refused() -> None:
    with serving(FieldClassifier()) as client:
        answer = send(client, field_png(NONE), url="/differential?cells=all")
    assert (answer.status_code, answer.json()["code"]) == (422, "unusable")


def test_earlier_predictions_of_cells_give_the_same_report() -> None:
    with serving(FieldClassifier()) as client:
        direct = send(client, field_png(), url="/differential?cells=all").json()
        predicted = send(client, field_png()).json()
        earlier = {name: predicted[name] for name in ("model", "predictions")}
        later = client.post("/differential", json=earlier).json()
    assert later["fingerprint"] == direct["fingerprint"]
    assert (later["counts"], later["warnings"]) == (direct["counts"], direct["warnings"])
    assert [cell["cell"] for cell in later["review"]] == [cell["cell"] for cell in direct["review"]]


@pytest.mark.parametrize("format", ["application/fhir+json", "application/hl7-v2"])
def test_reports_of_cells_can_be_made(format: str) -> None:
    with serving(FieldClassifier()) as client:
        answer = send(client, field_png(), url="/differential?cells=all", headers={"accept": format})
    assert answer.status_code == 200
