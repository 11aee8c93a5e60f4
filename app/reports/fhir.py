"""A differential as FHIR R4: a Bundle around a preliminary DiagnosticReport (https://hl7.org/fhir/R4)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from app.reports.loinc import CODES, LOINC, METHOD, NOTICE, PANEL, PANEL_NAME, identify, name, note, remarks
from app.wire.specimen import Differential

MEDIA_TYPE = "application/fhir+json"

Resource = dict[str, Any]

_ASSERTED_BY_AI = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}
_LABORATORY = {
    "coding": [
        {"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"},
    ]
}
_HAEMATOLOGY = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "HM"}]}


def bundle(found: Differential, *, method: str, software: str, at: datetime) -> Resource:
    """method: the setting `loinc_method`; software: this service's version."""
    issued = at.isoformat(timespec="seconds")
    device = _device(found, software)
    specimen = _specimen(found)
    cells = [_observation(found, label, CODES[method][label], issued) for label in found.counts]
    report = _report(found, issued)
    parts = [report, *cells, device, *([specimen] if specimen else [])]
    return {
        "resourceType": "Bundle",
        "meta": {"security": [_ASSERTED_BY_AI]},
        "identifier": {"system": "urn:ietf:rfc:3986", "value": identify(found, "Bundle").urn},
        "type": "collection",
        "timestamp": issued,
        "entry": [{"fullUrl": f"urn:uuid:{part['id']}", "resource": part} for part in parts],
    }


def _report(found: Differential, issued: str) -> Resource:
    return _resource(found, "DiagnosticReport") | {
        "meta": {"security": [_ASSERTED_BY_AI]},
        "status": "preliminary",
        "category": [_HAEMATOLOGY],
        "code": _code(PANEL, PANEL_NAME),
        "issued": issued,
        "result": [_reference(found, f"Observation {label}") for label in found.counts],
        "conclusion": " ".join(remarks(found)),
        **_of_specimen(found, several=True),
    }


def _observation(found: Differential, label: str, code: str, issued: str) -> Resource:
    return _resource(found, "Observation", label) | {
        "meta": {"security": [_ASSERTED_BY_AI]},
        "status": "preliminary",
        "category": [_LABORATORY],
        "code": _code(code, name(label)),
        "issued": issued,
        "valueQuantity": {
            "value": round(found.percent[label], 2),
            "unit": "%",
            "system": "http://unitsofmeasure.org",
            "code": "%",
        },
        "method": {"text": METHOD},
        "note": [{"text": note(found, label)}, {"text": NOTICE}],
        "device": _reference(found, "Device"),
        **_of_specimen(found),
    }


def _device(found: Differential, software: str) -> Resource:
    return _resource(found, "Device") | {
        "identifier": [{"type": {"text": "SHA-256 of the model"}, "value": found.model.sha256}],
        "deviceName": [{"name": found.model.name, "type": "model-name"}],
        "type": {"text": "Classifier of white blood cells"},
        "version": [
            {"type": {"text": "model"}, "value": found.model.version},
            {"type": {"text": "Leuko"}, "value": software},
        ],
    }


def _specimen(found: Differential) -> Resource | None:
    if found.specimen is None and found.accession is None:
        return None
    said = {"accessionIdentifier": {"value": found.accession}} if found.accession else {}
    if found.specimen:
        said["identifier"] = [{"value": found.specimen}]  # type: ignore[assignment]
    return _resource(found, "Specimen") | said


def _of_specimen(found: Differential, *, several: bool = False) -> Resource:
    if _specimen(found) is None:
        return {}
    reference = _reference(found, "Specimen")
    return {"specimen": [reference] if several else reference}


def _resource(found: Differential, kind: str, which: str = "") -> Resource:
    return {"resourceType": kind, "id": str(identify(found, f"{kind} {which}".strip()))}


def _reference(found: Differential, part: str) -> Resource:
    return {"reference": identify(found, part).urn}


def _code(code: str, text: str) -> Resource:
    return {"coding": [{"system": LOINC, "code": code}], "text": text}
