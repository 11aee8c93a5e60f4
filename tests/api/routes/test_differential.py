"""`POST /differential`."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from hl7apy.parser import parse_message
from httpx2 import Response
from starlette.testclient import TestClient

from tests.engine.test_site_bundle import SITE
from tests.fake_classifier import png
from tests.fakes import CUT, GREYS, HeldClassifier, metric, serving

CELLS = [GREYS[3], GREYS[3], GREYS[0], GREYS[1]]
HASH = "0" * 64


def upload(client: TestClient, *images: bytes, url: str = "/differential", **options: Any) -> Response:
    files = [("files", (f"{index}.png", data)) for index, data in enumerate(images)]
    answer: Response = client.post(url, files=files, **options)
    return answer


def cells(client: TestClient, *predictions: dict[str, Any], **identifiers: Any) -> Response:
    answer: Response = client.post("/differential", json={"predictions": predictions, **identifiers})
    return answer


def test_cells_are_counted_with_intervals(client: TestClient) -> None:
    count = upload(client, *map(png, CELLS)).json()
    assert (count["n"], count["leukocytes"], count["per_100_leukocytes"]) == (4, 4, {})
    assert count["counts"] == {"eosinophil": 1, "lymphocyte": 1, "monocyte": 0, "neutrophil": 2}
    assert count["percent"] == {"eosinophil": 25, "lymphocyte": 25, "monocyte": 0, "neutrophil": 50}
    assert count["intervals"]["wilson"]["neutrophil"] == pytest.approx([15.0, 85.0], abs=0.05)
    assert count["intervals"]["exact"]["monocyte"] == pytest.approx([0, 60.2], abs=0.05)
    assert (count["intervals"]["level"], count["intervals"]["unit"]) == (0.95, "percent")
    assert count["model"]["name"] == "fake"
    assert (count["specimen"], count["accession"], count["errors"]) == (None, None, [])


def test_cells_for_review_are_listed_with_their_reasons(client: TestClient) -> None:
    image = png(GREYS[2])
    (first, _) = upload(client, image, png(GREYS[0])).json()["review"]
    assert first == {
        "index": 0,
        "cell": None,
        "filename": "0.png",
        "image_sha256": sha256(image).hexdigest(),
        "label": "monocyte",
        "confidence": 0.7,
        "reasons": ["out_of_distribution"],
    }


def test_a_bare_image_is_a_specimen_of_one_cell(client: TestClient) -> None:
    answer = client.post("/v1/differential", content=png(GREYS[1]), headers={"content-type": "image/png"})
    assert answer.json()["counts"]["lymphocyte"] == 1


def test_images_that_fail_are_itemised_and_not_counted(client: TestClient) -> None:
    count = upload(client, CUT, png(GREYS[1])).json()
    assert count["n"] == 1
    assert [(error["index"], error["filename"], error["code"]) for error in count["errors"]] == [
        (0, "0.png", "undecodable_image")
    ]
    assert count["review"][0]["index"] == 1
    assert "1 of 2 images could not be classified" in warnings(count)["images_left_out"]


@pytest.mark.parametrize("accept", ["application/json", "application/fhir+json", "application/hl7-v2"])
def test_a_report_of_predictions_says_how_many_images_it_lacks(client: TestClient, accept: str) -> None:
    files = [("files", (f"{i}.png", content)) for i, content in enumerate((CUT, png(GREYS[1]), CUT))]
    predicted = client.post("/predict", files=files).json()
    specimen = {name: predicted[name] for name in ("predictions", "errors")}
    answer = client.post("/differential", json=specimen, headers={"accept": accept})
    assert answer.status_code == 200
    assert "2 of 3 images could not be classified" in answer.text
    if accept == "application/json":
        assert answer.json()["errors"] == predicted["errors"]


def test_where_every_image_fails_the_first_one_s_problem_is_the_answer(client: TestClient) -> None:
    answer = upload(client, CUT, b"MZ", headers={"accept": "application/fhir+json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "undecodable_image")
    assert answer.headers["content-type"] == "application/problem+json"


def warnings(count: dict[str, Any]) -> dict[str, str]:
    return {warning["code"]: warning["detail"] for warning in count["warnings"]}


def test_warnings_depend_on_the_number_of_cells(client: TestClient) -> None:
    few = cells(client, *[{"label": "monocyte"}] * 99).json()
    assert list(warnings(few)) == ["few_cells", "classified_cells_only"]
    enough = cells(client, *[{"label": "monocyte"}] * 100).json()
    assert list(warnings(enough)) == ["classified_cells_only"]
    limits = warnings(enough)["classified_cells_only"]
    assert "knows 4 classes, no basophils, bands, immature granulocytes, blasts or" in limits


FORMATS = ("application/json", "application/fhir+json", "application/hl7-v2")
UNVERIFIED = "not verified for this laboratory"
VERIFIED = "The model was verified for Ward 3 on 2026-11-30."


def verified() -> HeldClassifier:
    classifier = HeldClassifier()
    classifier.bundle = replace(classifier.bundle, site=SITE)
    return classifier


@pytest.mark.parametrize("accept", FORMATS)
def test_a_report_says_whether_its_model_was_verified(client: TestClient, accept: str) -> None:
    def reports(client: TestClient) -> list[str]:
        headers = {"accept": accept}
        predicted = upload(client, png(GREYS[0]), url="/predict").json()
        again = {name: predicted[name] for name in ("predictions", "model")}
        sent = upload(client, png(GREYS[0]), headers=headers)
        return [sent.text, client.post("/differential", json=again, headers=headers).text]

    assert all(UNVERIFIED in text for text in reports(client))
    with serving(verified()) as other:
        for text in reports(other):
            assert UNVERIFIED not in text
            assert ("Ward 3" if accept == "application/json" else VERIFIED) in text


@pytest.mark.parametrize("accept", FORMATS)
@pytest.mark.parametrize(
    "model", [{}, {"model": {"name": "fake", "version": "1.2", "sha256": "e" * 64}}], ids=["none", "other"]
)
def test_of_an_unknown_model_nothing_is_said(accept: str, model: dict[str, Any]) -> None:
    body = {"predictions": [{"label": "monocyte"}], **model}
    for classifier in (HeldClassifier(), verified()):
        with serving(classifier) as client:
            text = client.post("/differential", json=body, headers={"accept": accept}).text
        assert "verified for" not in text
        assert "Ward 3" not in text


def test_json_has_the_laboratory_and_the_date() -> None:
    with serving(verified()) as client:
        count = upload(client, png(GREYS[0])).json()
        assert count["site"] == {"name": "Ward 3", "verified_at": SITE.verified_at}
        assert "not_verified" not in warnings(count)
        info = f'leuko_model_info{{name="fake",sha256="{"f" * 64}",verified_for="Ward 3",version="1.2"}}'
        assert metric(client, info) == 1


def test_a_report_in_fhir_has_the_verification_with_device_and_observations() -> None:
    with serving(verified()) as client:
        document = upload(client, png(GREYS[0]), headers={"accept": "application/fhir+json"}).json()
    for entry in document["entry"]:
        resource = entry["resource"]
        if resource["resourceType"] in ("Device", "Observation"):
            assert VERIFIED in [note["text"] for note in resource["note"]]
        if resource["resourceType"] == "DiagnosticReport":
            assert VERIFIED in resource["conclusion"]


def test_an_image_sent_twice_is_warned_of(client: TestClient) -> None:
    count = upload(client, png(GREYS[1]), png(GREYS[1]), png(GREYS[2])).json()
    assert "1 of 3 images were sent more than once" in warnings(count)["duplicate_images"]
    assert count["n"] == 3


def test_predictions_of_predict_are_counted_without_their_images(client: TestClient) -> None:
    predicted = upload(client, *map(png, CELLS), url="/predict").json()
    sent = upload(client, *map(png, CELLS)).json()
    counted = cells(client, *predicted["predictions"], model=predicted["model"]).json()
    for body in (sent, counted):
        del body["request_id"]
    assert counted == sent


def test_images_without_cells_are_listed_with_the_predictions_of_others(client: TestClient) -> None:
    empty = [{"index": 3, "filename": "c.png"}]
    assert cells(client, {"label": "monocyte"}, empty=empty).json()["empty"] == empty
    answer = cells(client, {"label": "monocyte"}, empty=[{"index": "c.png"}])
    assert answer.json()["errors"][0]["field"] == "body.empty.0.index"


def test_identifiers_come_back_as_they_were_sent(client: TestClient) -> None:
    identifiers = {"specimen": "S-1 / µ", "accession": "A|1^2"}
    for answer in (
        upload(client, png(3 + GREYS[0]), data=identifiers),
        cells(client, {"label": "monocyte"}, **identifiers),
    ):
        assert {name: answer.json()[name] for name in identifiers} == identifiers


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_identifier_is_none(client: TestClient, empty: str | None) -> None:
    assert cells(client, {"label": "monocyte"}, specimen=empty, accession=empty).json()["specimen"] is None
    assert upload(client, png(GREYS[0]), data={"specimen": ""}).json()["specimen"] is None


@pytest.mark.parametrize("wrong", [" ", "a\nb", "\x00", "a" * 129, "\u202e"])
def test_a_wrong_identifier_is_refused_and_not_repeated(client: TestClient, wrong: str) -> None:
    for answer in (
        cells(client, {"label": "monocyte"}, specimen=wrong),
        upload(client, png(GREYS[0]), data={"specimen": wrong}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert answer.json()["errors"][0]["field"] == "body.specimen"
        assert len(answer.text) < 1000


def test_an_identifier_over_the_limit_of_bytes_is_too_large(client: TestClient) -> None:
    assert upload(client, png(GREYS[0]), data={"specimen": "a" * 4097}).status_code == 413


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ({"label": "basophil"}, "bad_labels"),
        ({"label": "DOE^JANE"}, "bad_labels"),
        ({}, "invalid_request"),
        ({"label": "monocyte", "confidence": 2}, "invalid_request"),
        ({"label": "monocyte", "image_sha256": "zz"}, "invalid_request"),
        ({"label": "monocyte", "review_reasons": ["because"]}, "invalid_request"),
    ],
)
def test_a_wrong_prediction_is_refused(client: TestClient, cell: dict[str, Any], code: str) -> None:
    answer = cells(client, {"label": "monocyte"}, cell)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert "DOE" not in answer.text


def test_the_number_of_predictions_is_limited(client: TestClient) -> None:
    assert cells(client).status_code == 422
    assert cells(client, *[{"label": "monocyte"}] * 10_000).json()["n"] == 10_000
    assert cells(client, *[{"label": "monocyte"}] * 10_001).status_code == 422


def test_reports_come_in_the_format_that_is_asked_for(client: TestClient) -> None:
    identifiers = {"specimen": "S-1"}
    answer = upload(client, *map(png, CELLS), headers={"accept": "application/fhir+json"}, data=identifiers)
    assert answer.headers["content-type"] == "application/fhir+json"
    assert len(Bundle.model_validate_json(answer.content).entry or []) == 7
    answer = upload(client, *map(png, CELLS), headers={"accept": "application/hl7-v2"}, data=identifiers)
    assert answer.headers["content-type"] == "application/hl7-v2; charset=utf-8"
    specimen = parse_message(answer.text, find_groups=False).spm
    assert specimen.spm_2.to_er7() == "S-1"
    assert answer.headers["x-request-id"]


def test_reports_are_made_of_predictions_too(client: TestClient) -> None:
    sent = {"predictions": [{"label": "monocyte", "image_sha256": HASH}]}
    answer = client.post("/differential", json=sent, headers={"accept": "application/fhir+json"})
    again = client.post("/differential", json=sent, headers={"accept": "application/fhir+json"})
    assert answer.json()["identifier"] == again.json()["identifier"]


def test_codes_follow_the_loinc_method_setting() -> None:
    with serving(loinc_method="automated") as client:
        answer = upload(client, png(GREYS[0]), headers={"accept": "application/hl7-v2"})
    assert "|713-8^" in answer.text


def test_another_format_is_not_acceptable(client: TestClient) -> None:
    answer = upload(client, png(GREYS[0]), headers={"accept": "text/html"})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    assert "application/fhir+json" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422),
        ({"files": {"images": b"x"}}, 422),
        ({"files": {"specimen": "S"}}, 422),
    ],
)
def test_other_bodies_are_refused(client: TestClient, options: dict[str, Any], status: int) -> None:
    assert client.post("/differential", **options).status_code == status


CONTEXT = {"subject": "Patient/17", "effectiveDateTime": "2026-11-30", "performer": "Organization/1"}


def test_a_transaction_is_made_of_images_and_of_predictions(client: TestClient) -> None:
    accepts: list[dict[str, str]] = [{}, {"accept": "*/*"}, {"accept": "application/fhir+json"}]
    for headers in accepts:
        for answer in (
            upload(
                client,
                *map(png, CELLS),
                url="/differential?bundle=transaction",
                headers=headers,
                data=CONTEXT,
            ),
            client.post(
                "/v1/differential?bundle=transaction",
                json={"predictions": [{"label": "monocyte"}], **CONTEXT},
                headers=headers,
            ),
        ):
            assert answer.headers["content-type"] == "application/fhir+json"
            bundle = Bundle.model_validate_json(answer.content)
            assert (bundle.type, len(bundle.entry or [])) == ("transaction", 6)
            assert answer.json()["entry"][0]["resource"]["subject"] == {"reference": "Patient/17"}
    collection = upload(client, png(GREYS[0]), url="/differential?bundle=collection").json()
    assert collection["type"] == "collection"


@pytest.mark.parametrize("accept", ["application/json", "application/hl7-v2"])
def test_a_bundle_in_another_format_is_not_acceptable(client: TestClient, accept: str) -> None:
    answer = upload(client, png(GREYS[0]), url="/differential?bundle=transaction", headers={"accept": accept})
    assert (answer.status_code, answer.json()["detail"]) == (
        406,
        "the response is one of application/fhir+json",
    )


def test_another_type_of_bundle_is_refused(client: TestClient) -> None:
    answer = upload(client, png(GREYS[0]), url="/differential?bundle=batch")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "query.bundle")


def test_what_the_caller_says_of_the_report_comes_back(client: TestClient) -> None:
    for answer in (
        upload(client, png(GREYS[0]), data=CONTEXT),
        cells(client, {"label": "monocyte"}, **CONTEXT),
    ):
        assert {name: answer.json()[name] for name in CONTEXT} == CONTEXT


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(
            ("subject", text)
            for text in ("4711", "Organization/1", "Patient/", "patient/1", "Patient/a b", "Patient/1\n")
        ),
        *(
            ("subject", text)
            for text in ("ftp://x/Patient/1", "Patient?name=Doe", "Patient/" + "1" * 65, "#p")
        ),
        *(("performer", text) for text in ("Patient/1", "Dr. House", "Organization")),
        *(
            ("effectiveDateTime", text)
            for text in ("today", "30.11.2026", "2026-13", "2026-02-30", "20261130")
        ),
        *(
            ("effectiveDateTime", text)
            for text in ("2026-11-30T08:15", "2026-11-30T08:15:00", "2026-11-30T08:15Z")
        ),
        *(
            ("effectiveDateTime", text)
            for text in ("2026-11-30T25:15:00Z", "2026-11-30 08:15:00Z", "2026-11-30T")
        ),
    ],
)
def test_wrong_context_of_a_report_is_refused_and_not_repeated(
    client: TestClient, name: str, wrong: str
) -> None:
    for answer in (
        cells(client, {"label": "monocyte"}, **{name: wrong}),
        upload(client, png(GREYS[0]), data={name: wrong}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert answer.json()["errors"][0]["field"] == f"body.{name}"
        assert "Dr. House" not in answer.text


@pytest.mark.parametrize(
    ("name", "right"),
    [
        *(
            ("subject", text)
            for text in ("https://fhir.example.org/r4/Patient/a-1.B", "Patient?identifier=urn:x|4711")
        ),
        *(("performer", text) for text in ("Practitioner/1", "PractitionerRole/1", "CareTeam/1")),
        *(
            ("effectiveDateTime", text)
            for text in ("2026", "2026-11", "2026-11-30T08:15:00.5Z", "2024-02-29")
        ),
        *((name, "") for name in CONTEXT),
    ],
)
def test_context_of_a_report_may_have_each_form_of_fhir(client: TestClient, name: str, right: str) -> None:
    answer = upload(client, png(GREYS[0]), url="/differential?bundle=transaction", data={name: right})
    assert Bundle.model_validate_json(answer.content).type == "transaction"


def test_what_a_format_cannot_hold_is_unusable(client: TestClient) -> None:
    sent = {"accept": "application/hl7-v2"}
    for answer in (
        upload(client, png(GREYS[0]), data=CONTEXT, headers=sent),
        client.post("/differential", json={"predictions": [{"label": "monocyte"}], **CONTEXT}, headers=sent),
        upload(
            client,
            png(GREYS[0]),
            url="/differential?bundle=collection",
            data={"subject": "Patient?identifier=1"},
        ),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "unusable")


MODEL = {"name": "earlier", "version": "0.9", "sha256": "a" * 64}


@pytest.mark.parametrize("accept", ["application/json", "application/fhir+json", "application/hl7-v2"])
def test_a_report_names_the_model_that_made_the_predictions(client: TestClient, accept: str) -> None:
    predicted = {**upload(client, *map(png, CELLS), url="/predict").json(), "model": MODEL}
    text = client.post("/differential", json=predicted, headers={"accept": accept}).text
    assert all(value in text for value in MODEL.values())
    assert "f" * 64 not in text


def test_the_same_images_by_another_model_are_another_report(client: TestClient) -> None:
    cell = {"label": "monocyte", "image_sha256": HASH}
    ours = cells(client, cell).json()
    assert cells(client, cell, model=ours["model"]).json()["fingerprint"] == ours["fingerprint"]
    assert cells(client, cell, model=MODEL).json()["fingerprint"] != ours["fingerprint"]


@pytest.mark.parametrize("wrong", [{}, {**MODEL, "sha256": "z"}, {**MODEL, "name": "a\nb"}, "earlier"])
def test_a_wrong_model_is_refused(client: TestClient, wrong: object) -> None:
    answer = cells(client, {"label": "monocyte"}, model=wrong)
    assert (answer.status_code, answer.json()["errors"][0]["field"].startswith("body.model")) == (422, True)
