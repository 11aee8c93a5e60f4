"""FHIR R4 reports, validated with fhir.resources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.diagnosticreport import DiagnosticReport

from app.errors import Unusable
from app.reports import fhir
from app.wire.specimen import Differential
from tests.own_labels import FIVE, THIRTY_TWO
from tests.reports.examples import (
    AGAIN,
    AT,
    CORRECTED,
    FINAL,
    LABELS,
    PRELIMINARY,
    THRICE,
    UNFINISHED,
    count,
    made,
    reviewed,
)

CONTEXT = {
    "subject": "Patient?identifier=urn:oid:1.2.3|4711",
    "effectiveDateTime": "2026-02-28T08:15:00+01:00",
    "performer": "Organization/laboratory",
}


def report(differential: Differential | None = None, method: str = "none") -> dict[str, Any]:
    return fhir.bundle(differential or made(), method=method, software="1.0", at=AT)


def transaction(differential: Differential | None = None, software: str = "1.0") -> dict[str, Any]:
    return fhir.bundle(
        differential or made(**CONTEXT), method="none", software=software, at=AT, kind=fhir.TRANSACTION
    )


def parts(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in document["entry"] if entry["resource"]["resourceType"] == kind]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "reference" in value:
            yield value["reference"]
        for item in value.values():
            yield from references(item)
    if isinstance(value, list):
        for item in value:
            yield from references(item)


@pytest.mark.parametrize(
    "differential", [made(), made(None, None), made("S", None), made(None, "A"), made(labels="e" * 300)]
)
def test_it_is_a_bundle_of_r4(differential: Differential) -> None:
    entries = Bundle.model_validate(report(differential)).entry or []
    kinds = [type(entry.resource).__name__ for entry in entries]
    specimen = ["Specimen"] if differential.specimen or differential.accession else []
    assert kinds == ["DiagnosticReport", *["Observation"] * 4, "Device", *specimen]
    assert isinstance(entries[0].resource, DiagnosticReport)


def test_every_reference_has_an_entry_and_every_entry_a_reference() -> None:
    document = report()
    urls = [entry["fullUrl"] for entry in document["entry"]]
    assert len(set(urls)) == len(urls)
    assert set(references(document)) == set(urls[1:])
    assert urls == [f"urn:uuid:{entry['resource']['id']}" for entry in document["entry"]]


def test_everything_is_preliminary_and_marked_as_asserted_by_ai() -> None:
    document = report()
    for resource in parts(document, "DiagnosticReport") + parts(document, "Observation"):
        assert resource["status"] == "preliminary"
        assert resource["meta"]["security"][0]["code"] == "AIAST"
    assert "not reviewed" in parts(document, "DiagnosticReport")[0]["conclusion"]
    assert "1 of 4 cells are marked for review" in parts(document, "DiagnosticReport")[0]["conclusion"]


@pytest.mark.parametrize(
    ("method", "codes"),
    [
        ("none", ["26450-7", "26478-8", "26485-3", "26511-6"]),
        ("manual", ["714-6", "737-7", "744-3", "23761-0"]),
        ("automated", ["713-8", "736-9", "5905-5", "770-8"]),
    ],
)
def test_observations_have_percentages_with_the_codes_of_the_method(method: str, codes: list[str]) -> None:
    observations = parts(report(method=method), "Observation")
    assert [one["code"]["coding"][0]["code"] for one in observations] == codes
    assert [one["valueQuantity"]["value"] for one in observations] == [50, 25, 0, 25]
    ucum = {(one["valueQuantity"]["system"], one["valueQuantity"]["code"]) for one in observations}
    assert ucum == {("http://unitsofmeasure.org", "%")}
    note = observations[0]["note"][0]["text"]
    assert note == "2 of 4 classified cells; 95 % interval 15.0 to 85.0 (Wilson), 6.8 to 93.2 (exact)"


def test_the_device_is_the_model() -> None:
    (device,) = parts(report(), "Device")
    assert device["identifier"][0]["value"] == "f" * 64
    assert [one["value"] for one in device["version"]] == ["1.2", "1.0"]


def test_identifiers_are_those_of_the_caller() -> None:
    (specimen,) = parts(report(), "Specimen")
    assert specimen["identifier"] == [{"value": "S-1"}]
    assert specimen["accessionIdentifier"] == {"value": "A-1"}


def test_the_same_cells_reported_again_have_the_same_identifiers() -> None:
    assert report(made()) == report(made(request_id="another"))
    assert report(made("S-2"))["identifier"] != report(made())["identifier"]
    assert report(made(labels="nee"))["identifier"] != report(made())["identifier"]


# Transactions


@pytest.mark.parametrize(
    "differential", [made(), made(None, None), made(**CONTEXT), made("S", None, **CONTEXT)]
)
def test_a_transaction_creates_what_the_server_lacks(differential: Differential) -> None:
    document = transaction(differential)
    assert Bundle.model_validate(document).type == "transaction"
    for entry in document["entry"]:
        resource, request = entry["resource"], entry["request"]
        assert (request["method"], request["url"]) == ("POST", resource["resourceType"])
        found = {f"identifier={one.get('system')}|{one['value']}" for one in resource["identifier"]}
        assert request["ifNoneExist"] in found
        assert request["ifNoneExist"].startswith("identifier=urn:ietf:rfc:3986|urn:uuid:")
        assert "id" not in resource
    searches = [(entry["request"]["url"], entry["request"]["ifNoneExist"]) for entry in document["entry"]]
    assert len(set(searches)) == len(searches)
    given = {differential.subject, differential.performer}
    assert set(references(document)) - given == {entry["fullUrl"] for entry in document["entry"][1:]}


def test_a_collection_has_no_requests() -> None:
    assert all("request" not in entry for entry in report()["entry"])


def test_a_report_sent_again_creates_nothing_and_another_one_does() -> None:
    def searches(document: dict[str, Any], *kinds: str) -> set[str]:
        entries = document["entry"]
        return {e["request"]["ifNoneExist"] for e in entries if e["request"]["url"] in kinds}

    reported, shared = ("DiagnosticReport", "Observation"), ("Device", "Specimen")
    first = transaction()
    assert transaction(made(request_id="another", **CONTEXT)) == first
    for name, other in {
        "subject": "Patient/2",
        "performer": "Organization/2",
        "effectiveDateTime": "2026",
    }.items():
        changed = transaction(made(**{**CONTEXT, name: other}))
        assert not searches(changed, *reported) & searches(first, *reported)
        assert searches(changed, "Device") == searches(first, "Device")
    more = transaction(made(labels="neelm", **CONTEXT))
    assert not searches(more, *reported) & searches(first, *reported)
    assert searches(more, *shared) == searches(first, *shared)
    assert searches(transaction(software="1.1"), "Device") != searches(first, "Device")


def coded(concepts: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(coding["system"], coding["code"]) for concept in concepts for coding in concept["coding"]}


def test_it_has_what_us_core_requires_of_laboratory_results() -> None:
    """US Core 7.0: DiagnosticReport for Laboratory Results Reporting, Laboratory Result Observation."""
    document = transaction()
    (one,) = parts(document, "DiagnosticReport")
    required = {"status", "category", "code", "subject", "effectiveDateTime", "issued", "performer", "result"}
    assert required <= one.keys()
    assert ("http://terminology.hl7.org/CodeSystem/v2-0074", "LAB") in coded(one["category"])
    assert coded([one["code"]]) == {("http://loinc.org", "69738-3")}
    assert one["subject"] == {"reference": CONTEXT["subject"]}
    assert one["performer"] == [{"reference": CONTEXT["performer"]}]
    assert len(one["result"]) == 4
    for observation in parts(document, "Observation"):
        assert {"status", "category", "code", "subject", "effectiveDateTime"} <= observation.keys()
        laboratory = "http://terminology.hl7.org/CodeSystem/observation-category", "laboratory"
        assert laboratory in coded(observation["category"])
        assert {system for system, _ in coded([observation["code"]])} == {"http://loinc.org"}
        assert ("valueQuantity" in observation) != ("dataAbsentReason" in observation)
        assert observation["effectiveDateTime"] == CONTEXT["effectiveDateTime"]
    (specimen,) = parts(document, "Specimen")
    assert coded([specimen["type"]]) == {("http://snomed.info/sct", "119297000")}
    assert specimen["subject"] == {"reference": CONTEXT["subject"]}


def test_a_search_for_a_patient_is_for_transactions() -> None:
    with pytest.raises(Unusable, match="bundle=transaction"):
        report(made(**CONTEXT))
    document = report(made(**{**CONTEXT, "subject": "https://fhir.example.org/r4/Patient/17"}))
    assert Bundle.model_validate(document).type == "collection"


# Labels of other bundles


@pytest.mark.parametrize("labels", [FIVE, THIRTY_TWO], ids=["5 labels", "32 labels"])
@pytest.mark.parametrize("method", ["none", "manual", "automated"])
def test_every_label_of_any_bundle_is_an_observation(labels: tuple[str, ...], method: str) -> None:
    differential = count(labels, [*labels, labels[0]])
    document = report(differential, method)
    assert Bundle.model_validate(document)
    observations = parts(document, "Observation")
    assert len(observations) == len(parts(document, "DiagnosticReport")[0]["result"]) == len(labels)
    assert len({one["code"]["text"] for one in observations}) == len(labels)
    codings = [tuple(coded([one["code"]])) for one in observations if "coding" in one["code"]]
    assert len(set(codings)) == len(codings)
    units = {one["valueQuantity"]["code"] for one in observations}
    assert units == {"%", "/100{WBCs}", "{cells}"}
    percentages = [
        one["valueQuantity"]["value"] for one in observations if one["valueQuantity"]["code"] == "%"
    ]
    assert sum(percentages) == pytest.approx(100, abs=0.2)


def test_a_label_without_a_code_is_text_and_one_of_the_bundle_has_its_code() -> None:
    differential = count(THIRTY_TWO, THIRTY_TWO)
    own = {"x2": {"none": "30376-8"}}
    document = fhir.bundle(differential, method="none", software="1.0", at=AT, own=own)
    by_text = {one["code"]["text"]: one["code"] for one in parts(document, "Observation")}
    assert by_text["Faggot-cell/100 leukocytes in Blood"].keys() == {"text"}
    assert coded([by_text["X2/100 leukocytes in Blood"]]) == {("http://loinc.org", "30376-8")}
    assert coded([by_text["Nucleated erythrocytes/100 leukocytes in Blood (nrbc)"]]) == {
        ("http://loinc.org", "19048-8")
    }


def test_without_leukocytes_there_is_no_percentage() -> None:
    document = report(count(FIVE, ["platelet", "erythroblast"]))
    assert Bundle.model_validate(document)
    for observation in parts(document, "Observation"):
        if observation["code"]["text"].startswith("Platelets"):
            assert observation["valueQuantity"]["value"] == 1
        else:
            assert "valueQuantity" not in observation
            assert coded([observation["dataAbsentReason"]]) == {
                ("http://terminology.hl7.org/CodeSystem/data-absent-reason", "not-a-number")
            }


# Reviews

STATUSES = {"preliminary": PRELIMINARY, "final": FINAL, "corrected": CORRECTED}
REPORTED = ("DiagnosticReport", "Observation")
EXTENSIONS = {
    "DiagnosticReport": "http://hl7.org/fhir/StructureDefinition/diagnosticReport-replaces",
    "Observation": "http://hl7.org/fhir/StructureDefinition/observation-replaces",
}


def by_text(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["code"]["text"].split("/")[0]: one for one in parts(document, "Observation")}


def notes(resource: dict[str, Any]) -> list[str]:
    return [note["text"] for note in resource["note"]]


def replaced(resource: dict[str, Any]) -> dict[str, Any] | None:
    """Return the identifier of the resource that this one replaces."""
    if "extension" not in resource:
        return None
    [extension] = resource["extension"]
    assert extension["url"] == EXTENSIONS[resource["resourceType"]]
    reference = extension["valueReference"]
    assert reference["type"] == resource["resourceType"]
    identifier: dict[str, Any] = reference["identifier"]
    return identifier


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("kind", [fhir.COLLECTION, fhir.TRANSACTION])
def test_a_report_of_each_status_is_valid_and_names_model_and_reviewer(status: str, kind: str) -> None:
    differential = STATUSES[status]
    document = fhir.bundle(differential, method="none", software="1.0", at=AT, kind=kind)
    assert Bundle.model_validate(document).type == kind
    (one,) = parts(document, "DiagnosticReport")
    person = [{"type": "Practitioner", "display": differential.reviewer}]
    assert one.get("resultsInterpreter") == (person if differential.reviewer else None)
    (device,) = parts(document, "Device")
    assert device["deviceName"][0]["name"] == "fake"
    (device_url,) = [
        entry["fullUrl"] for entry in document["entry"] if entry["resource"]["resourceType"] == "Device"
    ]
    for resource in [one, *parts(document, "Observation")]:
        assert resource["status"] == status
        assert resource["meta"]["security"][0]["code"] == "AIAST"
    for observation in parts(document, "Observation"):
        assert observation["device"] == {"reference": device_url}
        assert observation.get("performer") == (person if differential.reviewer else None)
        assert observation["method"]["text"].endswith("by a person") is (status != "preliminary")
    assert len(one["result"]) == len(parts(document, "Observation"))
    assert set(references(document)) == {entry["fullUrl"] for entry in document["entry"][1:]}
    assert "Doe" not in str(document)


def test_the_laboratory_answers_beside_the_reviewer() -> None:
    document = report(reviewed(None, "monocyte", "monocyte", performer="Organization/1"))
    (one,) = parts(document, "DiagnosticReport")
    assert one["performer"] == [{"reference": "Organization/1"}]
    for observation in parts(document, "Observation"):
        assert observation["performer"] == [*one["performer"], *one["resultsInterpreter"]]
    assert Bundle.model_validate(document)


def test_a_review_that_is_not_finished_is_preliminary_and_says_so() -> None:
    (one,) = parts(report(UNFINISHED), "DiagnosticReport")
    assert one["status"] == "preliminary"
    assert "the review is not complete" in one["conclusion"]
    assert "1 of 6 cells are marked for review" in one["conclusion"]
    assert one["resultsInterpreter"][0]["display"] == "A. Smith"


def test_values_are_those_of_the_reviewed_labels_with_the_model_s_beside_them() -> None:
    found = by_text(report(FINAL))
    assert found["Monocytes"]["valueQuantity"]["value"] == pytest.approx(33.33)
    assert found["Unidentified cells"]["valueQuantity"]["value"] == pytest.approx(33.33)
    assert "1 of 3 counted leukocytes" in notes(found["Monocytes"])[0]
    assert "By the model alone: 1 of 6 cells." in notes(found["Lymphocytes"])
    assert found["Lymphocytes"]["valueQuantity"]["value"] == 0
    (one,) = parts(report(FINAL), "DiagnosticReport")
    assert "reviewed and signed by A. Smith" in one["conclusion"]
    assert "Cells that a person labelled: 4 of 6, of which 1 kept the model's label." in one["conclusion"]
    assert "Not counted, since a person found no cell there: 1." in one["conclusion"]


def test_each_changed_cell_has_the_label_of_the_model_and_of_the_person() -> None:
    changed = by_text(report(FINAL))["Cells that a person labelled otherwise than the model"]
    assert changed["valueQuantity"]["value"] == 3
    cells = {one["code"]["text"]: one["valueString"] for one in changed["component"]}
    assert cells == {
        f"position 1, SHA-256 of the image {1:064x}": "monocyte; by the model lymphocyte",
        f"position 2, SHA-256 of the image {2:064x}": "unidentified; by the model monocyte",
        f"position 3, SHA-256 of the image {3:064x}": "no cell; by the model neutrophil",
    }


def test_a_review_that_changes_nothing_lists_no_cells() -> None:
    document = report(reviewed(*LABELS))
    assert len(parts(document, "Observation")) == len(LABELS) + 1  # and the unidentified


def test_a_correction_holds_the_values_and_the_cells_of_the_report_that_it_replaces() -> None:
    document = report(CORRECTED)
    found = by_text(document)
    assert "In the replaced report: 33.33 %, 1 of 3." in notes(found["Monocytes"])
    assert "In the replaced report: 0.00 %, 0 of 3." in notes(found["Lymphocytes"])
    assert "In the replaced report: cells: 1." in notes(found["Platelets among the classified cells"])
    assert "In the replaced report: 33.33 per 100 leukocytes, 1 beside 3." in notes(
        found["Nucleated erythrocytes"]
    )
    assert found["Unidentified cells"]["valueQuantity"]["value"] == 0
    assert "In the replaced report: 33.33 %, 1 of 3." in notes(found["Unidentified cells"])
    changed = found["Cells that a person labelled otherwise than the model"]
    cells = {one["code"]["text"]: one["valueString"] for one in changed["component"]}
    earlier = f"In the replaced report, position 1, SHA-256 of the image {1:064x}"
    assert cells[earlier] == "monocyte; by the model lymphocyte"
    assert (len(cells), changed["valueQuantity"]["value"]) == (5, 2)
    (one,) = parts(document, "DiagnosticReport")
    assert f"This report replaces the one with the fingerprint {FINAL.fingerprint}." in one["conclusion"]
    assert "The replaced report was final, signed by A. Smith: eosinophil 1, " in one["conclusion"]


def test_a_report_corrected_three_times_holds_all_earlier_values() -> None:
    document = report(THRICE)
    assert Bundle.model_validate(document)
    found = by_text(document)
    monocytes = notes(found["Monocytes"])
    assert [note for note in monocytes if note.startswith("In the")] == [
        "In the replaced report: 50.00 %, 2 of 4.",
        "In the second report before this one: 25.00 %, 1 of 4.",
        "In the third report before this one: 33.33 %, 1 of 3.",
    ]
    assert "In the third report before this one: 33.33 %, 1 of 3." in notes(found["Unidentified cells"])
    changed = found["Cells that a person labelled otherwise than the model"]
    cells = {one["code"]["text"]: one["valueString"] for one in changed["component"]}
    image = f"position 1, SHA-256 of the image {1:064x}"
    assert cells[f"In the replaced report, {image}"] == "monocyte; by the model lymphocyte"
    assert cells[f"In the third report before this one, {image}"] == "monocyte; by the model lymphocyte"
    assert changed["valueQuantity"]["value"] == 0 < len(cells)
    (one,) = parts(document, "DiagnosticReport")
    for text in (
        f"This report replaces the one with the fingerprint {AGAIN.fingerprint}.",
        "The replaced report was corrected, signed by C. Brown: eosinophil 0, ",
        f"It replaced the one with the fingerprint {CORRECTED.fingerprint}.",
        "The second report before this one was corrected, signed by B. Jones: eosinophil 0, ",
        f"It replaced the one with the fingerprint {FINAL.fingerprint}.",
        "The third report before this one was final, signed by A. Smith: eosinophil 1, ",
    ):
        assert text in one["conclusion"]


def test_a_correction_without_the_former_values_says_so() -> None:
    document = report(reviewed(*LABELS[:3], replaces=str(FINAL.fingerprint)))
    (one,) = parts(document, "DiagnosticReport")
    assert one["status"] == "corrected"
    assert "whose values were not sent and are not in it" in one["conclusion"]
    assert "In the replaced report" not in str(document)


def test_each_report_names_the_one_that_it_replaces_as_a_server_has_it() -> None:
    first, final, corrected = map(transaction, (PRELIMINARY, FINAL, CORRECTED))
    assert [replaced(one) for kind in REPORTED for one in parts(first, kind)] == [None] * (1 + len(LABELS))
    for later, earlier in ((final, first), (corrected, final)):
        known = {one["code"]["text"]: one["identifier"] for kind in REPORTED for one in parts(earlier, kind)}
        known.pop("Cells that a person labelled otherwise than the model", None)
        for one in (one for kind in REPORTED for one in parts(later, kind)):
            former = known.pop(one["code"]["text"], None)
            assert replaced(one) == (former and former[0])
            assert not former or not any(identifier in one["identifier"] for identifier in former)
        assert known == {}


def test_a_signed_report_has_its_fingerprint() -> None:
    for differential in STATUSES.values():
        (one,) = parts(report(differential), "DiagnosticReport")
        assert one["identifier"] == [{"type": {"text": "Fingerprint"}, "value": differential.fingerprint}]
    assert (
        f"Fingerprint of this report: {FINAL.fingerprint}."
        in parts(report(FINAL), "DiagnosticReport")[0]["conclusion"]
    )
