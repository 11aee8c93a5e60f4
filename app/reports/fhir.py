"""A differential count as FHIR R4: a Bundle with a DiagnosticReport (https://hl7.org/fhir/R4).

With `subject` and `effectiveDateTime` it also has what US Core requires of laboratory results
(https://hl7.org/fhir/us/core).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from app.errors import Unusable
from app.reports.loinc import (
    LOINC,
    NO_CODES,
    PANEL,
    PANEL_NAME,
    Codes,
    about_site,
    amount,
    changes,
    codes,
    derive,
    earlier,
    identify,
    method_text,
    name,
    note,
    notice,
    remarks,
    replaced,
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
_REPLACES = "http://hl7.org/fhir/StructureDefinition/{}-replaces"  # extensions of R4
_CHANGES = "Changes"  # no label: these are in small letters
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
    observations = [_observation(differential, label, code, issued) for label, code in found.items()]
    observations += _changes(differential, issued)
    report = _report(differential, observations, issued)
    resources = [report, *observations, device, *([specimen] if specimen else [])]
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


def _report(differential: Differential, observations: Sequence[Resource], issued: str) -> Resource:
    fingerprint, former = differential.fingerprint, replaced(differential)
    return _resource(differential, "DiagnosticReport") | {
        "meta": {"security": [_ASSERTED_BY_AI]},
        **({"identifier": [_fingerprint(fingerprint)]} if fingerprint else {}),
        **(_replaces("DiagnosticReport", _fingerprint(former)) if former else {}),
        "status": differential.status,
        "category": _SECTIONS,
        "code": _code(PANEL, PANEL_NAME),
        "issued": issued,
        "result": [{"reference": f"urn:uuid:{one['id']}"} for one in observations],
        "conclusion": " ".join(remarks(differential)),
        **_context(differential),
        **({"resultsInterpreter": reviewer} if (reviewer := _reviewer(differential)) else {}),
        **_of_specimen(differential, several=True),
    }


def _observation(differential: Differential, label: str, code: str | None, issued: str) -> Resource:
    notes = (note(differential, label), *earlier(differential, label), notice(differential))
    return {
        **_result(differential, label, _code(code, name(label)), issued),
        **_former(differential, label),
        **_value(differential, label),
        "note": [{"text": text} for text in (*notes, *about_site(differential))],
    }


def _changes(differential: Differential, issued: str) -> list[Resource]:
    """Return an Observation that lists the cells to which a person gave another label; none without any."""
    cells = changes(differential)
    if not cells:
        return []
    code = _code(None, "Cells that a person labelled otherwise than the model")
    return [
        {
            **_result(differential, _CHANGES, code, issued),
            "valueQuantity": _quantity(len(differential.changes), "cells", "{cells}"),
            "component": [{"code": {"text": cell}, "valueString": labels} for cell, labels in cells],
        }
    ]


def _result(differential: Differential, which: str, code: Resource, issued: str) -> Resource:
    """Return what all Observations have. which: a label, or _CHANGES."""
    context = _context(differential)
    performers = [*context.get("performer", []), *_reviewer(differential)]
    return _resource(differential, "Observation", which) | {
        "meta": {"security": [_ASSERTED_BY_AI]},
        "status": differential.status,
        "category": [_LABORATORY],
        "code": code,
        "issued": issued,
        "method": {"text": method_text(differential)},
        "device": _reference(differential, "Device"),
        **context,
        **({"performer": performers} if performers else {}),
        **_of_specimen(differential),
    }


def _reviewer(differential: Differential) -> list[Resource]:
    """Return who signed: a name, since Leuko knows no resource of this person."""
    return [{"type": "Practitioner", "display": differential.reviewer}] if differential.reviewer else []


def _former(differential: Differential, label: str) -> Resource:
    """Return the extension for the Observation of a label in the replaced report, if it has one."""
    fingerprint, former = replaced(differential), differential.former
    if fingerprint is None or label not in (former.counts if former else differential.model_counts):
        return {}
    urn = identify(differential, f"Observation {label}", fingerprint).urn
    return _replaces("Observation", {"system": _URI, "value": urn})


def _replaces(kind: str, identifier: Resource) -> Resource:
    """Return the extension that names a replaced resource: by its identifier, since the receiver may not have
    it.
    """
    name = kind[0].lower() + kind[1:]
    former = {"type": kind, "identifier": identifier}
    return {"extension": [{"url": _REPLACES.format(name), "valueReference": former}]}


def _fingerprint(sha256: str) -> Resource:
    return {"type": {"text": "Fingerprint"}, "value": sha256}


def _value(differential: Differential, label: str) -> Resource:
    value, unit, code = amount(differential, label)
    if value is None:  # 0 of 0 leukocytes
        return {"dataAbsentReason": {"coding": [{"system": _ABSENT, "code": "not-a-number"}]}}
    return {"valueQuantity": _quantity(round(value, 2), unit, code)}


def _quantity(value: float, unit: str, code: str) -> Resource:
    return {"value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": code}


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
