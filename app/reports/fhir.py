"""A differential count as FHIR R4: a Bundle with a preliminary DiagnosticReport (https://hl7.org/fhir/R4)."""

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


def bundle(differential: Differential, *, method: str, software: str, at: datetime) -> Resource:
    """Return a Bundle. method: the setting `loinc_method`; software: the version of the service."""
    issued = at.isoformat(timespec="seconds")
    device = _device(differential, software)
    specimen = _specimen(differential)
    cells = [_observation(differential, label, CODES[method][label], issued) for label in differential.counts]
    report = _report(differential, issued)
    resources = [report, *cells, device, *([specimen] if specimen else [])]
    return {
        "resourceType": "Bundle",
        "meta": {"security": [_ASSERTED_BY_AI]},
        "identifier": {"system": "urn:ietf:rfc:3986", "value": identify(differential, "Bundle").urn},
        "type": "collection",
        "timestamp": issued,
        "entry": [{"fullUrl": f"urn:uuid:{resource['id']}", "resource": resource} for resource in resources],
    }


def _report(differential: Differential, issued: str) -> Resource:
    return _resource(differential, "DiagnosticReport") | {
        "meta": {"security": [_ASSERTED_BY_AI]},
        "status": "preliminary",
        "category": [_HAEMATOLOGY],
        "code": _code(PANEL, PANEL_NAME),
        "issued": issued,
        "result": [_reference(differential, f"Observation {label}") for label in differential.counts],
        "conclusion": " ".join(remarks(differential)),
        **_of_specimen(differential, several=True),
    }


def _observation(differential: Differential, label: str, code: str, issued: str) -> Resource:
    return _resource(differential, "Observation", label) | {
        "meta": {"security": [_ASSERTED_BY_AI]},
        "status": "preliminary",
        "category": [_LABORATORY],
        "code": _code(code, name(label)),
        "issued": issued,
        "valueQuantity": {
            "value": round(differential.percent[label], 2),
            "unit": "%",
            "system": "http://unitsofmeasure.org",
            "code": "%",
        },
        "method": {"text": METHOD},
        "note": [{"text": note(differential, label)}, {"text": NOTICE}],
        "device": _reference(differential, "Device"),
        **_of_specimen(differential),
    }


def _device(differential: Differential, software: str) -> Resource:
    return _resource(differential, "Device") | {
        "identifier": [{"type": {"text": "SHA-256 of the model"}, "value": differential.model.sha256}],
        "deviceName": [{"name": differential.model.name, "type": "model-name"}],
        "type": {"text": "Classifier of white blood cells"},
        "version": [
            {"type": {"text": "model"}, "value": differential.model.version},
            {"type": {"text": "Leuko"}, "value": software},
        ],
    }


def _specimen(differential: Differential) -> Resource | None:
    if differential.specimen is None and differential.accession is None:
        return None
    resource = _resource(differential, "Specimen")
    if differential.accession:
        resource["accessionIdentifier"] = {"value": differential.accession}
    if differential.specimen:
        resource["identifier"] = [{"value": differential.specimen}]
    return resource


def _of_specimen(differential: Differential, *, several: bool = False) -> Resource:
    if _specimen(differential) is None:
        return {}
    reference = _reference(differential, "Specimen")
    return {"specimen": [reference] if several else reference}


def _resource(differential: Differential, kind: str, which: str = "") -> Resource:
    return {"resourceType": kind, "id": str(identify(differential, f"{kind} {which}".strip()))}


def _reference(differential: Differential, part: str) -> Resource:
    return {"reference": identify(differential, part).urn}


def _code(code: str, text: str) -> Resource:
    return {"coding": [{"system": LOINC, "code": code}], "text": text}
