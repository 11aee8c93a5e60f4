"""A differential count as HL7 v2.5.1: an ORU^R01 message."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from app.errors import Unusable
from app.reports.loinc import (
    NO_CODES,
    PANEL,
    PANEL_NAME,
    Codes,
    amount,
    changes,
    codes,
    earlier,
    identify,
    method_text,
    name,
    note,
    remarks,
)
from app.wire.specimen import Differential

MEDIA_TYPE = "application/hl7-v2"
LOCAL = "99LEU"  # the coding system of labels without a LOINC code; 99zzz is a local one (table 0396)

STATUS = {"preliminary": "P", "final": "F", "corrected": "C"}  # tables 0085 and 0123

_ESCAPES = str.maketrans(
    {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"}
    | {"\r": "\\X0D\\", "\n": "\\X0A\\"}
)  # escape sequences of section 2.7.1


def message(differential: Differential, *, method: str, at: datetime, own: Codes = NO_CODES) -> str:
    """Return an ORU^R01 message. Segments end with a carriage return; the encoding is UTF-8 (MSH-18).

    There is no PID segment: only the order, identified by the accession number, identifies the patient.
    method: the setting `loinc_method`. own: codes of the model's bundle. Raise Unusable for what only FHIR
    can hold.
    """
    if differential.subject or differential.effectiveDateTime or differential.performer:
        raise Unusable(
            "subject, effectiveDateTime and performer are for FHIR: in HL7 v2 the order says these"
        )
    when = at.astimezone(UTC).strftime("%Y%m%d%H%M%S+0000")
    control = identify(differential, "Message").hex[:20]  # the maximum length of MSH-10
    segments = [
        _segment("MSH", "^~\\&", "LEUKO", "", "", "", when, "", "ORU^R01^ORU_R01", control, "P", "2.5.1")
        + "||||||UNICODE UTF-8",
        _segment("OBR", 1, "", escape(differential.accession or ""), _code(PANEL, PANEL_NAME), "", "", when)
        + "|" * 15
        + f"{when}|||{STATUS[differential.status]}"
        + (f"|||||||&{escape(differential.reviewer)}" if differential.reviewer else ""),  # OBR-32
        *_notes([*remarks(differential), *(f"{cell}: {labels}." for cell, labels in changes(differential))]),
    ]
    for number, (label, code) in enumerate(codes(differential.counts, method, own).items(), 1):
        segments.append(_result(differential, number, label, code, when))
        segments += _notes([note(differential, label), *earlier(differential, label)])
    if differential.specimen is not None:
        segments.append(
            _segment("SPM", 1, f"{escape(differential.specimen)}", "", "119297000^Blood specimen^SCT")
        )
    return "".join(f"{segment}\r" for segment in segments)


def escape(text: str) -> str:
    return text.translate(_ESCAPES)


def _result(differential: Differential, number: int, label: str, code: str | None, when: str) -> str:
    model = differential.model
    equipment = f"{escape(model.name)} {escape(model.version)}^Leuko^{model.sha256}^L"
    what = _code(code, name(label)) if code else f"{label}^{escape(name(label))}^{LOCAL}"
    value, unit, ucum = amount(differential, label)
    units = f"{ucum}^{'percent' if unit == '%' else unit}^UCUM"
    # Without leukocytes there is no percentage: X says that the result cannot be obtained (table 0085).
    text, status = ("", "X") if value is None else (_number(value), STATUS[differential.status])
    start = _segment("OBX", number, "NM", what, "", text)
    observer = f"^{escape(differential.reviewer)}" if differential.reviewer else ""
    how = escape(method_text(differential))
    return f"{start}|{units}|||||{status}|||{when}||{observer}|^{how}|{equipment}"


def _number(value: float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _notes(texts: Sequence[str]) -> list[str]:
    return [_segment("NTE", number, "L", escape(text)) for number, text in enumerate(texts, 1)]


def _code(code: str, text: str) -> str:
    return f"{code}^{escape(text)}^LN"


def _segment(*fields: object) -> str:
    return "|".join(map(str, fields))
