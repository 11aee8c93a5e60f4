"""Scenario 35: schemathesis on every route. No request gets a 5xx, and the document tells no lies.

A real service runs with the fake classifier. A body that the document calls binary is drawn from pictures and
archives that the service can use and from ones that it cannot, so that both kinds of answer are checked.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case

from app.api.application import create_app
from app.settings import Settings
from tests.fake_classifier import png
from tests.fakes import zipped
from tests.running import Running

FORM, JSON = "multipart/form-data", "application/json"
CONFIG: dict[str, Any] = {
    # Of all cases that a route has at its edges, and of random ones this many; the same in each run.
    "generation": {"mode": "all", "deterministic": True, "max-examples": 60},
    "checks": {
        # No JSON schema tells a picture from noise, nor a ZIP with a folder for each class from another.
        "positive_data_acceptance": {"enabled": False},
        # Without 413 by default, which a part that comes too often gets.
        "negative_data_rejection": {"expected-statuses": [400, 404, 405, 413, 415, 422]},
    },
}


def archive() -> bytes:
    labelled = ((10, "eosinophil"), (70, "lymphocyte"), (200, "eosinophil"))
    good = {f"{label}/{grey}.png": png(grey) for grey, label in labelled}
    return zipped(good | {"monocyte/cut.png": png(140)[:60]})


BINARY = st.sampled_from([png(10), png(200), archive(), png(10)[:60], b"", b"MZ"])
schemathesis.openapi.format("binary", BINARY)
schemathesis.openapi.media_type(
    "image/png",
    BINARY,
    aliases=[*(f"image/{kind}" for kind in ("jpeg", "webp", "tiff", "bmp", "gif")), "application/dicom"],
)
document = create_app(Settings()).openapi()
schema = schemathesis.openapi.from_dict(document, config=schemathesis.Config.from_dict(CONFIG))


@schema.hook
def filter_case(_: Any, case: Case[Any]) -> bool:
    """Without forms whose texts are no texts: on the wire they are."""
    if case.media_type != FORM or not isinstance(case.body, dict):
        return True
    return all(isinstance(case.body.get(name, ""), str) for name in ("specimen", "accession"))


@pytest.fixture(scope="module")
def address(service: Running) -> str:
    return service.address


@schema.parametrize()
def test_35_every_answer_of_every_route_is_as_the_document_says(case: Case[Any], address: str) -> None:
    case.call_and_validate(base_url=address)


@pytest.mark.parametrize(
    ("path", "request_", "kind"),
    [
        ("/predict", {"body": {"files": [png(10), b"MZ"]}, "media_type": FORM}, JSON),
        ("/predict", {"body": png(10), "media_type": "image/png"}, JSON),
        ("/differential", {"body": {"files": [png(10), b"MZ"]}, "media_type": FORM}, JSON),
        ("/differential", {"body": {"predictions": [{"label": "monocyte"}]}, "media_type": JSON}, JSON),
        (
            "/differential",
            {"body": png(10), "media_type": "image/png", "headers": {"Accept": "application/fhir+json"}},
            "application/fhir+json",
        ),
        (
            "/differential",
            {"body": png(10), "media_type": "image/png", "headers": {"Accept": "application/hl7-v2"}},
            "application/hl7-v2",
        ),
        ("/evaluate", {"body": {"archive": archive()}, "media_type": FORM}, JSON),
        (
            "/evaluate",
            {"body": {"archive": archive(), "group_pattern": "(.)"}, "media_type": FORM},
            JSON,
        ),
        (
            "/evaluate",
            {"body": {"archive": archive()}, "media_type": FORM, "headers": {"Accept": "text/event-stream"}},
            "text/event-stream",
        ),
        (
            "/evaluate",
            {
                "body": {"files": [png(10)], "labels": json.dumps({"files.png": "monocyte"})},
                "media_type": FORM,
            },
            JSON,
        ),
        ("/evaluate/predictions", {"body": {"labels": [0], "predictions": [1]}, "media_type": JSON}, JSON),
        (
            "/evaluate/predictions",
            {"body": {"labels": [0], "probabilities": [[0.1, 0.2, 0.3, 0.4]]}, "media_type": JSON},
            JSON,
        ),
    ],
)
def test_35_every_kind_of_good_answer_is_as_the_document_says(
    path: str, request_: dict[str, Any], kind: str, address: str
) -> None:
    response = schema[path]["POST"].Case(**request_).call_and_validate(base_url=address)
    assert response.status_code == 200
    assert response.headers["content-type"][0].partition(";")[0] == kind


def test_35_the_document_that_was_tested_is_the_one_that_is_served(address: str) -> None:
    assert schemathesis.openapi.from_url(f"{address}/openapi.json").raw_schema == document
