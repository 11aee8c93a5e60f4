from __future__ import annotations

from starlette.testclient import TestClient

from tests.fakes import serving


def test_the_model_is_described_down_to_its_hash(client: TestClient) -> None:
    model = client.get("/model").json()
    assert (model["name"], model["version"], model["sha256"]) == ("fake", "1.2", "f" * 64)
    assert model["labels"] == ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]
    assert (model["engine"], model["device"]) == ("fake", "abacus")
    assert model["review"] == {"confidence": 0.5, "ood_score": 3, "familiar": None, "quality": None}
    assert model["temperature"] == 1
    assert model["preprocessing"]["framing"] == "whole"
    assert {"training", "scores", "service_version"} <= set(model)


def test_the_versioned_path_answers_too(client: TestClient) -> None:
    assert client.get("/v1/model").json() == client.get("/model").json()


def test_the_codes_are_those_of_reports_with_the_setting_s_method() -> None:
    with serving(loinc_method="manual") as client:
        assert client.get("/model").json()["codes"] == {
            "eosinophil": "714-6",
            "lymphocyte": "737-7",
            "monocyte": "744-3",
            "neutrophil": "23761-0",
        }


def test_the_limits_are_the_effective_ones() -> None:
    with serving(max_files=9, max_queue=5, max_pixels=77) as client:
        limits = client.get("/model").json()["limits"]
    assert (limits["max_files"], limits["max_pixels"]) == (5, 77)
