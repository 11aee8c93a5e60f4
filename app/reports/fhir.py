"""A differential count as FHIR R4: a Bundle with a DiagnosticReport (https://hl7.org/fhir/R4).

With `subject` and `effectiveDateTime` it also has what US Core requires of laboratory results
(https://hl7.org/fhir/us/core).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from app.errors import Unusable
from app.reports.loinc import (
    LOINC,
    METHOD,
    NO_CODES,
    PANEL,
    PANEL_NAME,
    Codes,
    about_site,
    amount,
    codes,
    derive,
    identify,
    name,
    note,
    notice,
    remarks,
)
from app.wire.specimen import Differential

MEDIA_TYPE = "application/fhir+json"
COLLECTION, TRANSACTION = "collection", "transaction"

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
_SECTIONS = [
    {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": code}]}
    for code in ("LAB", "HM")
]
_BLOOD = {"coding": [{"system": "http://snomed.info/sct", "code": "119297000", "display": "Blood specimen"}]}
_ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
_URI = "urn:ietf:rfc:3986"  # the system of identifiers that are URIs


def bundle(
    differential: Differential,
    *,
    method: str,
    software: str,
    at: datetime,
    kind: str = COLLECTION,
    own: Codes = NO_CODES,
) -> Resource:
    """Return a Bundle. method: the setting `loinc_method`; software: the version of the service.

    kind: COLLECTION, or TRANSACTION, whose resources a server creates unless it has them. own: codes of the
    model's bundle.
    Raise Unusable for a reference that only a transaction can hold.
    """
    for given in (differential.subject, differential.performer):
        if kind == COLLECTION and "?" in (given or ""):
            raise Unusable("a reference by `?identifier=` is for bundle=transaction, whose receiver finds it")
    issued = at.isoformat(timespec="seconds")
    device = _device(differential, software)
    specimen = _specimen(differential)
    found = codes(differential.counts, method, own)
    cells = [_observation(differential, label, code, issued) for label, code in found.items()]
    report = _report(differential, issued)
    resources = [report, *cells, device, *([specimen] if specimen else [])]
    return {
        "resourceType": "Bundle",
        "meta": {"security": [_ASSERTED_BY_AI]},
        "identifier": {"system": _URI, "value": identify(differential, "Bundle").urn},
        "type": kind,
        "timestamp": issued,
        "entry": [
            {"fullUrl": f"urn:uuid:{resource['id']}"}
            | (_create(resource, differential, software) if kind == TRANSACTION else {"resource": resource})
            for resource in resources
        ],
    }


def _create(resource: Resource, differential: Differential, software: str) -> Resource:
    """Return how a server creates a resource, unless it has one with the same identifier of ours."""
    kind, model = resource["resourceType"], differential.model
    same = {  # for several reports
        "Device": (model.name, model.version, model.sha256, software),
        "Specimen": (differential.specimen, differential.accession, differential.subject),
    }
    ours = (
        derive(kind, *(text or "" for text in same[kind])).urn
        if kind in same
        else f"urn:uuid:{resource['id']}"
    )
    content = {name: value for name, value in resource.items() if name != "id"}  # the server chooses it
    content["identifier"] = [*resource.get("identifier", []), {"system": _URI, "value": ours}]
    request = {"method": "POST", "url": kind, "ifNoneExist": f"identifier={_URI}|{ours}"}
    return {"resource": content, "request": request}


def _report(differential: Differential, issued: str) -> Resource:
    return _resource(differential, "DiagnosticReport") | {
        "meta": {"security": [_ASSERTED_BY_AI]},
        "status": differential.status,
        "category": _SECTIONS,
        "code": _code(PANEL, PANEL_NAME),
        "issued": issued,
        "result": [_reference(differential, f"Observation {label}") for label in differential.counts],
        "conclusion": " ".join(remarks(differential)),
        **_context(differential),
        **_of_specimen(differential, several=True),
    }


def _observation(differential: Differential, label: str, code: str | None, issued: str) -> Resource:
    return _resource(differential, "Observation", label) | {
        "meta": {"security": [_ASSERTED_BY_AI]},
        "status": differential.status,
        "category": [_LABORATORY],
        "code": _code(code, name(label)),
        "issued": issued,
        **_value(differential, label),
        "method": {"text": METHOD},
        "note": [
            {"text": text}
            for text in (note(differential, label), notice(differential), *about_site(differential))
        ],
        "device": _reference(differential, "Device"),
        **_context(differential),
        **_of_specimen(differential),
    }


def _value(differential: Differential, label: str) -> Resource:
    value, unit, code = amount(differential, label)
    if value is None:  # 0 of 0 leukocytes
        return {"dataAbsentReason": {"coding": [{"system": _ABSENT, "code": "not-a-number"}]}}
    return {
        "valueQuantity": {
            "value": round(value, 2),
            "unit": unit,
            "system": "http://unitsofmeasure.org",
            "code": code,
        }
    }


def _device(differential: Differential, software: str) -> Resource:
    notes = [{"text": text} for text in about_site(differential)]
    return _resource(differential, "Device") | {
        "identifier": [{"type": {"text": "SHA-256 of the model"}, "value": differential.model.sha256}],
        "deviceName": [{"name": differential.model.name, "type": "model-name"}],
        "type": {"text": "Classifier of white blood cells"},
        "version": [
            {"type": {"text": "model"}, "value": differential.model.version},
            {"type": {"text": "Leuko"}, "value": software},
        ],
        **({"note": notes} if notes else {}),
    }


def _specimen(differential: Differential) -> Resource | None:
    if differential.specimen is None and differential.accession is None:
        return None
    resource = _resource(differential, "Specimen")
    if differential.accession:
        resource["accessionIdentifier"] = {"value": differential.accession}
    if differential.specimen:
        resource["identifier"] = [{"value": differential.specimen}]
    if differential.subject:
        resource["subject"] = {"reference": differential.subject}
    return resource | {"type": _BLOOD}


def _context(differential: Differential) -> Resource:
    """Return whose cells these are, from when, and who answers for the report, if the caller said so."""
    found: Resource = {}
    if differential.subject:
        found["subject"] = {"reference": differential.subject}
    if differential.effectiveDateTime:
        found["effectiveDateTime"] = differential.effectiveDateTime
    if differential.performer:
        found["performer"] = [{"reference": differential.performer}]
    return found


def _of_specimen(differential: Differential, *, several: bool = False) -> Resource:
    if _specimen(differential) is None:
        return {}
    reference = _reference(differential, "Specimen")
    return {"specimen": [reference] if several else reference}


def _resource(differential: Differential, kind: str, which: str = "") -> Resource:
    return {"resourceType": kind, "id": str(identify(differential, f"{kind} {which}".strip()))}


def _reference(differential: Differential, part: str) -> Resource:
    return {"reference": identify(differential, part).urn}


def _code(code: str | None, text: str) -> Resource:
    return ({"coding": [{"system": LOINC, "code": code}]} if code else {}) | {"text": text}
