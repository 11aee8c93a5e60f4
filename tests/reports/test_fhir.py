"""FHIR R4, held to fhir.resources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.diagnosticreport import DiagnosticReport

from app.reports import fhir
from app.wire.specimen import Differential
from tests.reports.examples import AT, made


def report(found: Differential | None = None, method: str = "none") -> dict[str, Any]:
    return fhir.bundle(found or made(), method=method, software="1.0", at=AT)


def parts(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [one["resource"] for one in document["entry"] if one["resource"]["resourceType"] == kind]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "reference" in value:
            yield value["reference"]
        for one in value.values():
            yield from references(one)
    if isinstance(value, list):
        for one in value:
            yield from references(one)


@pytest.mark.parametrize(
    "found", [made(), made(None, None), made("S", None), made(None, "A"), made(labels="e" * 300)]
)
def test_it_is_a_bundle_of_r4(found: Differential) -> None:
    entries = Bundle.model_validate(report(found)).entry or []
    kinds = [type(entry.resource).__name__ for entry in entries]
    specimen = ["Specimen"] if found.specimen or found.accession else []
    assert kinds == ["DiagnosticReport", *["Observation"] * 4, "Device", *specimen]
    assert isinstance(entries[0].resource, DiagnosticReport)


def test_every_reference_leads_to_an_entry_and_none_is_left_alone() -> None:
    document = report()
    urls = [entry["fullUrl"] for entry in document["entry"]]
    assert len(set(urls)) == len(urls)
    assert set(references(document)) == set(urls[1:])
    assert urls == [f"urn:uuid:{entry['resource']['id']}" for entry in document["entry"]]


def test_nothing_is_final_and_everything_says_that_a_machine_made_it() -> None:
    document = report()
    for one in parts(document, "DiagnosticReport") + parts(document, "Observation"):
        assert one["status"] == "preliminary"
        assert one["meta"]["security"][0]["code"] == "AIAST"
    assert "not verified" in parts(document, "DiagnosticReport")[0]["conclusion"]
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
    found = parts(report(method=method), "Observation")
    assert [one["code"]["coding"][0]["code"] for one in found] == codes
    assert [one["valueQuantity"]["value"] for one in found] == [50, 25, 0, 25]
    ucum = {(one["valueQuantity"]["system"], one["valueQuantity"]["code"]) for one in found}
    assert ucum == {("http://unitsofmeasure.org", "%")}
    note = found[0]["note"][0]["text"]
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
