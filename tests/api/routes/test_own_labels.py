"""Every route with bundles of five and of thirty-two labels, through decoders and OpenVINO."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fhir.resources.R4B.bundle import Bundle
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from starlette.testclient import TestClient

from app.api.json_bodies import count_values
from app.api.json_tasks import CountCells
from app.cli.main import main
from app.engine.bundle import CLASSES, load_bundle
from app.engine.classifier import load_classifier
from app.evaluation.cell_types import Role, role_of
from app.wire.specimen import MAX_CELLS
from tests.fake_classifier import FakeClassifier
from tests.fakes import metric, serving, zipped
from tests.own_bundles import cell, write_bundle
from tests.own_labels import FIVE, THIRTY_TWO

CODES = {"platelet": {"none": "30376-8"}}


@dataclass(frozen=True)
class Own:
    """A service of a bundle with its own labels."""

    client: TestClient
    labels: tuple[str, ...]
    bundle: Path
    audit: Path

    def cells(self, *labels: str) -> list[tuple[str, tuple[str, bytes]]]:
        return [("files", (f"{i}.png", cell(label, self.labels))) for i, label in enumerate(labels)]

    def differential(self, *labels: str, accept: str = "application/json", **parts: str) -> Any:
        headers = {"accept": accept}
        answer = self.client.post("/differential", files=self.cells(*labels), data=parts, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    def archive(self, folder: str = "{}") -> bytes:
        entries = {f"set/{folder.format(label)}/1.png": cell(label, self.labels) for label in self.labels}
        return zipped(entries)

    def evaluate(self, archive: bytes) -> Any:
        return self.client.post("/evaluate", files={"archive": ("set.zip", archive)})


@pytest.fixture(scope="module", params=[FIVE, THIRTY_TWO], ids=["5 labels", "32 labels"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    folder = tmp_path_factory.mktemp("own")
    bundle = write_bundle(folder / "bundle", request.param, codes=CODES)
    classifier = cast(FakeClassifier, load_classifier(bundle, "openvino", threads=1))
    with serving(classifier, audit=str(folder / "audit.jsonl")) as client:
        yield Own(client, request.param, bundle, folder / "audit.jsonl")


def test_predict_has_a_probability_of_each_label_in_order(own: Own) -> None:
    document = own.client.post("/predict", files=own.cells(*own.labels)).json()
    assert [one["label"] for one in document["predictions"]] == list(own.labels)
    for one in document["predictions"]:
        assert list(one["probabilities"]) == list(own.labels)
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert one["confidence"] == one["probabilities"][one["label"]] > 0.9


def test_the_model_s_labels_are_those_of_the_bundle(own: Own) -> None:
    assert own.client.get("/model").json()["labels"] == list(own.labels)


def test_a_count_has_every_label_and_percentages_of_the_leukocytes(own: Own) -> None:
    count = own.differential(*own.labels).json()
    roles = {label: role_of(label) for label in own.labels}
    assert count["counts"] == dict.fromkeys(own.labels, 1)
    assert count["n"] == len(own.labels)
    assert count["leukocytes"] == [*roles.values()].count(Role.LEUKOCYTE)
    assert list(count["percent"]) == [label for label in own.labels if roles[label] is Role.LEUKOCYTE]
    assert sum(count["percent"].values()) == pytest.approx(100)
    ratios = count["per_100_leukocytes"]
    assert ratios == {
        label: 100 / count["leukocytes"] for label in own.labels if roles[label] is Role.PER_100
    }
    assert count["intervals"]["wilson"].keys() == count["percent"].keys()
    assert count["intervals_per_100_leukocytes"]["exact"].keys() == ratios.keys()
    few, limits, _not_verified = (warning["detail"] for warning in count["warnings"])
    assert few.startswith(f"Leukocytes classified: {count['leukocytes']}.")
    assert f"knows {len(own.labels)} classes" in limits
    assert ("no lymphocytes, monocytes, eosinophils, bands or blasts" in limits) == (own.labels == FIVE)
    assert ("classes. Any other cell" in limits) == (own.labels == THIRTY_TWO)  # nothing is lacking


def test_without_leukocytes_percentages_are_null(own: Own) -> None:
    count = own.differential("platelet").json()
    assert (count["n"], count["leukocytes"], count["counts"]["platelet"]) == (1, 0, 1)
    for values in (count["percent"], count["per_100_leukocytes"], count["intervals"]["wilson"]):
        assert {*values.values()} == {None}


def test_reports_are_valid_and_have_the_bundle_s_codes(own: Own) -> None:
    document = own.differential(*own.labels, accept="application/fhir+json", specimen="S-1").json()
    assert Bundle.model_validate(document)
    text = own.differential(*own.labels, accept="application/hl7-v2", specimen="S-1").text
    assert parse_message(text, validation_level=VALIDATION_LEVEL.STRICT).validate()
    entries = [entry["resource"] for entry in document["entry"]]
    observations = [one for one in entries if one["resourceType"] == "Observation"]
    results = [line.split("|") for line in text.split("\r") if line.startswith("OBX")]
    count = own.differential(*own.labels).json()
    for label, observation, result in zip(own.labels, observations, results, strict=True):
        value = (count["percent"] | count["per_100_leukocytes"]).get(label, count["counts"][label])
        assert observation["valueQuantity"]["value"] == round(value, 2) == float(result[5])
        assert observation["code"]["text"] == result[3].split("^")[1]
    platelets = observations[own.labels.index("platelet")]["code"]
    assert platelets["coding"] == [{"system": "http://loinc.org", "code": "30376-8"}]
    reported = {
        label: one["code"].get("coding", [{"code": None}])[0]["code"]
        for label, one in zip(own.labels, observations, strict=True)
    }
    assert own.client.get("/model").json()["codes"] == reported


def test_predictions_with_activation_maps_are_counted_again(own: Own) -> None:
    predicted = own.client.post("/predict", files=own.cells(*own.labels)).json()
    cam = {"shape": [7, 7], "values": [[0.5] * 7] * 7}
    body = {"predictions": [one | {"cam": cam} for one in predicted["predictions"]]}
    count = own.client.post("/differential", json=body).json()
    assert count["counts"] == dict.fromkeys(own.labels, 1)
    # As many as a request may have are not refused for the number of their values.
    values = count_values(json.dumps(body["predictions"][0]).encode())
    task = CountCells("r", load_bundle(own.bundle), "application/json", "none")
    assert values * MAX_CELLS <= task.most_values


def test_a_label_of_another_model_is_refused_with_those_that_are_known(own: Own) -> None:
    answer = own.client.post("/differential", json={"predictions": [{"label": "mast cell"}]})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_labels")
    assert ", ".join(own.labels) in answer.json()["detail"]


@pytest.mark.parametrize("folder", ["{}", "{}s"])
def test_folders_named_after_the_labels_are_evaluated(own: Own, folder: str) -> None:
    report = own.evaluate(own.archive(folder)).json()
    size = len(own.labels)
    assert report["labels"] == list(own.labels)
    assert report["confusion_matrix"] == np.eye(size, dtype=int).tolist()
    assert list(report["per_class"]) == list(own.labels)
    assert report["verification"]["by_class"] == dict.fromkeys(own.labels, 1)
    assert (report["n"], report["accuracy"], report["balanced_accuracy"]) == (size, 1, 1)


def test_a_folder_of_another_class_is_refused(own: Own) -> None:
    answer = own.evaluate(zipped({"mast cell/1.png": cell("platelet", own.labels)}))
    assert answer.status_code == 422
    assert f"named {', '.join(own.labels)}" in answer.json()["detail"]


def test_predictions_made_elsewhere_are_evaluated_by_these_labels(own: Own) -> None:
    body: dict[str, Any] = {"labels": [*own.labels], "probabilities": np.eye(len(own.labels)).tolist()}
    report = own.client.post("/evaluate/predictions", json=body).json()
    assert (report["accuracy"], len(report["confusion_matrix"])) == (1, len(own.labels))
    wrong = own.client.post("/evaluate/predictions", json=body | {"labels": ["mast cell"] * len(own.labels)})
    assert wrong.status_code == 422


def test_the_inference_protocol_has_the_shape_of_the_labels(own: Own) -> None:
    metadata = own.client.get("/v2/models/own").json()
    shapes = {output["name"]: output["shape"] for output in metadata["outputs"]}
    assert shapes["probabilities"] == [-1, len(own.labels)]
    images = [base64.b64encode(cell(label, own.labels)).decode() for label in own.labels]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": images}
    outputs = [{"name": "label"}, {"name": "probabilities", "parameters": {"classification": 2}}]
    body = {"inputs": [tensor], "outputs": outputs}
    answer = own.client.post("/v2/models/own/infer", json=body).json()
    found = {output["name"]: output for output in answer["outputs"]}
    assert found["label"]["data"] == list(own.labels)
    assert found["probabilities"]["shape"] == [len(images), 2]
    best = [text.split(":", 2) for text in found["probabilities"]["data"][::2]]
    assert [(int(index), label) for _, index, label in best] == list(enumerate(own.labels))


def test_metrics_have_a_series_of_each_label(own: Own) -> None:
    text = own.client.get("/metrics").text
    for label in own.labels:
        assert f'leuko_predictions_total{{label="{label}"}}' in text
        assert metric(own.client, f'leuko_reference_share{{label="{label}"}}') == 1 / len(own.labels)
    assert not [label for label in CLASSES if label not in own.labels and f'label="{label}"' in text]


def test_the_audit_log_is_compared_with_the_bundle_s_reference(
    own: Own, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own.client.post("/predict", files=own.cells(*own.labels))
    saved = tmp_path / "reference.json"
    main(["drift", str(own.audit), "--bundle", str(own.bundle), "--save", str(saved)])
    document = json.loads(capsys.readouterr().out)
    assert document["broken_lines"] == document["other_models"] == 0
    assert list(document["found"]["labels"]) == list(own.labels)
    assert {f"share of {label}" for label in own.labels} <= {one["measure"] for one in document["shifts"]}
    command = ["drift", str(own.audit), "--bundle", str(own.bundle), "--reference"]
    assert main([*command, str(saved)]) == 0
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"labels": {"mast cell": document["n"]}}))
    capsys.readouterr()
    assert main([*command, str(saved)]) == 1
    assert "the drift reference has the classes mast cell, the model " in capsys.readouterr().err
