"""Codes, texts and identifiers of laboratory reports, common to all formats.

Sources of the LOINC codes: without a method, the panel 24318-8 (loinc.org) and the value set of the complete
blood count in HL7's mCODE; manual, the microscope counts in the host interface of Mindray's BC-5380;
automated, value sets of FHIR guides. A type without an entry is reported as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from uuid import UUID, uuid5

from app.evaluation.cell_types import Role, find_type, role_of
from app.wire.specimen import (
    NOT_A_CELL,
    UNIDENTIFIED,
    ChangedCell,
    Differential,
    FormerReport,
    Proportions,
    Ratios,
    replaced_reports,
)

LOINC = "http://loinc.org"
PANEL = "69738-3"  # differential panel, method unspecified, blood
# Per 100 leukocytes in blood, by the setting loinc_method and the type of the cells. 26508-2, often used for
# neutrophils, is for bands.
CODES = {
    "none": {
        "neutrophil": "26511-6",
        "segmented neutrophil": "26505-8",
        "band": "26508-2",
        "immature granulocyte": "38518-7",
        "metamyelocyte": "28541-1",
        "myelocyte": "26498-6",
        "promyelocyte": "26524-9",
        "blast": "26446-5",
        "myeloblast": "30445-1",
        "lymphoblast": "34922-5",
        "monoblast": "34923-3",
        "lymphocyte": "26478-8",
        "variant lymphocyte": "13046-8",
        "abnormal lymphocyte": "30413-9",
        "large granular lymphocyte": "30420-4",
        "prolymphocyte": "30465-9",
        "plasma cell": "13047-6",
        "hairy cell": "35058-7",
        "sezary cell": "34919-1",
        "lymphoma cell": "30423-8",
        "monocyte": "26485-3",
        "promonocyte": "30466-7",
        "eosinophil": "26450-7",
        "basophil": "30180-4",
        "nucleated erythrocyte": "19048-8",
        "smudge cell": "34992-8",
    },
    "manual": {
        "neutrophil": "23761-0",
        "segmented neutrophil": "769-0",
        "band": "764-1",
        "metamyelocyte": "740-1",
        "myelocyte": "749-2",
        "promyelocyte": "783-1",
        "blast": "709-6",
        "myeloblast": "747-6",
        "lymphoblast": "33831-9",
        "monoblast": "33840-0",
        "lymphocyte": "737-7",
        "variant lymphocyte": "735-1",
        "abnormal lymphocyte": "29261-5",
        "prolymphocyte": "6746-2",
        "lymphoma cell": "24104-2",
        "monocyte": "744-3",
        "promonocyte": "13599-6",
        "eosinophil": "714-6",
        "basophil": "707-0",
        "nucleated erythrocyte": "18309-5",
    },
    "automated": {
        "neutrophil": "770-8",
        "band": "35332-6",
        "immature granulocyte": "71695-1",
        "lymphocyte": "736-9",
        "variant lymphocyte": "42250-1",
        "monocyte": "5905-5",
        "eosinophil": "713-8",
        "basophil": "706-2",
        "nucleated erythrocyte": "58413-6",
    },
}
PANEL_NAME = "Differential panel - Blood"
METHOD = "Automated classification of images by a neural network"

# The reports that a correction replaces, the latest first: `MOST_FORMER`.
BEFORE = (
    "the replaced report",
    *(
        f"the {place} report before this one"
        for place in ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
    ),
)
_NAMESPACE = UUID("c4f6d8f0-6a57-5d1c-9b0e-2f0f3a7a6f6e")
_ABOUT = {
    Role.LEUKOCYTE: "/100 leukocytes in Blood",
    Role.PER_100: "/100 leukocytes in Blood",
    Role.COUNTED: " among the classified cells",
}

Codes = Mapping[str, Mapping[str, str]]  # label → method → LOINC code
NO_CODES: Codes = MappingProxyType({})


def codes(labels: Iterable[str], method: str, own: Codes) -> dict[str, str | None]:
    """Return the LOINC code of each label; None: none is known, and the label is reported as text.

    method: the setting `loinc_method`; a type without a code for it has the one without a method. own: codes
    of the bundle, which come first. A code of the table stands for a whole type: two labels of one type do
    not get it, nor does a label if the bundle gives its code to another.
    """
    labels = list(labels)
    found = {label: _choose(own.get(label, {}), method) for label in labels}
    types = {label: find_type(label) for label in labels}
    taken = {code for code in found.values() if code}
    for label, cell_type in types.items():
        if found[label] or cell_type is None or list(types.values()).count(cell_type) > 1:
            continue
        code = _choose({name: table.get(cell_type.key, "") for name, table in CODES.items()}, method)
        found[label] = None if code in taken else code
    return found


def _choose(by_method: Mapping[str, str], method: str) -> str | None:
    return by_method.get(method) or by_method.get("none") or None


def name(label: str) -> str:
    """Return what is reported of a label: LOINC's name of its type, with the label itself if it differs."""
    if label == UNIDENTIFIED:
        return f"Unidentified cells{_ABOUT[Role.LEUKOCYTE]}"
    cell_type = find_type(label)
    if cell_type is None:
        return label.capitalize() + _ABOUT[role_of(label)]
    same = re.sub("[_-]", " ", label).removesuffix("s") == cell_type.key
    return cell_type.plural + _ABOUT[cell_type.role] + ("" if same else f" ({label})")


def amount(differential: Differential, label: str) -> tuple[float | None, str, str]:
    """Return what is reported of a label, its unit, and the unit in UCUM (https://ucum.org).

    The amount is None without leukocytes.
    """
    if label in differential.percent:
        return differential.percent[label], "%", "%"
    if label in differential.per_100_leukocytes:
        return differential.per_100_leukocytes[label], "per 100 leukocytes", "/100{WBCs}"
    return differential.counts[label], "cells", "{cells}"


def note(differential: Differential, label: str) -> str:
    """Return the count of a class and the confidence intervals of what is reported of it."""
    count, of = differential.counts[label], differential.leukocytes
    level = f"{100 * differential.intervals.level:g} % interval"
    counted = "counted" if differential.agreement.reviewed else "classified"
    whole = f"{counted} cells" if of == differential.n else f"{counted} leukocytes"
    intervals: Proportions | Ratios
    if label in differential.percent:
        text, intervals = f"{count} of {of} {whole}", differential.intervals
    elif label in differential.per_100_leukocytes:
        text, intervals = (
            f"{count} beside {of} {counted} leukocytes",
            differential.intervals_per_100_leukocytes,
        )
    else:
        return f"{count} of {differential.n} {counted} cells; no leukocytes, and in no percentage"
    wilson, exact = intervals.wilson[label], intervals.exact[label]
    if wilson is None or exact is None:
        return text
    (low, high), (least, most) = wilson, exact
    return f"{text}; {level} {low:.1f} to {high:.1f} (Wilson), {least:.1f} to {most:.1f} (exact)"


def notice(differential: Differential) -> str:
    """Return who made the report, and whether a person has reviewed it."""
    agreement, cells = differential.agreement, differential.n + differential.not_a_cell
    by_person = (
        f"Cells that a person labelled: {agreement.reviewed} of {cells}, of which {agreement.kept} kept the"
        " model's label."
    )
    if differential.status != "preliminary":
        made = f"Made by artificial intelligence, reviewed and signed by {differential.reviewer}. {by_person}"
    elif agreement.reviewed or differential.reviewer:
        made = (
            f"Made by artificial intelligence, and the review is not complete: a person must finish and sign"
            f" it. {by_person}"
        )
    else:
        made = "Made by artificial intelligence and not reviewed: a person must review it."
    return f"{made} Not for diagnosis."


def method_text(differential: Differential) -> str:
    """Return how the cells were told apart."""
    return METHOD + (", reviewed by a person" if differential.agreement.reviewed else "")


def replaced(differential: Differential) -> str | None:
    """Return the fingerprint of the report that this one replaces.

    That of a correction is named by its sender; a final report replaces the one that the model made alone.
    """
    if differential.replaces is None and differential.status == "final":
        return differential.unreviewed_fingerprint
    return differential.replaces


def earlier(differential: Differential, label: str) -> list[str]:
    """Return the earlier values of a class: by the model alone, and in each report before this one."""
    found = []
    if differential.agreement.reviewed and label in differential.model_counts:
        cells = sum(differential.model_counts.values())
        found.append(f"By the model alone: {differential.model_counts[label]} of {cells} cells.")
    found += [
        f"In {which}: {_former_value(former, label)}."
        for which, former in zip(BEFORE, replaced_reports(differential), strict=False)
    ]
    return found


def _former_value(former: FormerReport, label: str) -> str:
    if label not in former.counts:
        return "not reported"
    n, role = former.counts[label], role_of(label)
    of = sum(number for name, number in former.counts.items() if role_of(name) is Role.LEUKOCYTE)
    if role is Role.COUNTED or not of:
        return f"cells: {n}"
    if role is Role.PER_100:
        return f"{100 * n / of:.2f} per 100 leukocytes, {n} beside {of}"
    return f"{100 * n / of:.2f} %, {n} of {of}"


def changes(differential: Differential) -> list[tuple[str, str]]:
    """Return the cells that a person labelled otherwise than the model, here and in each report before.

    Each is the cell and its labels. File names, which may name a patient, are in no report.
    """
    return [
        *((_cell(one), _labels(one)) for one in differential.changes),
        *(
            (f"In {which}, {_cell(one)}", _labels(one))
            for which, former in zip(BEFORE, replaced_reports(differential), strict=False)
            for one in former.changes
        ),
    ]


def _cell(changed: ChangedCell) -> str:
    number = "" if changed.cell is None else f", cell {changed.cell}"
    return f"position {changed.index}{number}, SHA-256 of the image {changed.image_sha256 or 'unknown'}"


def _labels(changed: ChangedCell) -> str:
    by_person = "no cell" if changed.reviewed == NOT_A_CELL else changed.reviewed
    return f"{by_person}; by the model {changed.label}"


def about_site(differential: Differential) -> list[str]:
    """Return in a sentence whether the model was verified for this laboratory; nothing if that is unknown."""
    if differential.site:
        day = differential.site.verified_at[:10]
        return [f"The model was verified for {differential.site.name} on {day}."]
    return [caution.detail for caution in differential.warnings if caution.code == "not_verified"]


def remarks(differential: Differential) -> list[str]:
    """Return the notes on the whole report."""
    notes = [notice(differential), *(caution.detail for caution in differential.warnings)]
    if differential.site:
        notes += about_site(differential)
    if differential.not_a_cell:
        notes.append(f"Not counted, since a person found no cell there: {differential.not_a_cell}.")
    if differential.review:
        notes.append(f"{len(differential.review)} of {differential.n} cells are marked for review.")
    if differential.status != "preliminary" and differential.fingerprint:
        notes.append(f"Fingerprint of this report: {differential.fingerprint}.")
    if differential.replaces:
        notes.append(f"This report replaces the one with the fingerprint {differential.replaces}.")
    for which, former in zip(BEFORE, replaced_reports(differential), strict=False):
        counts = ", ".join(f"{label} {n}" for label, n in former.counts.items())
        notes.append(f"{which.capitalize()} was {former.status}, signed by {former.reviewer}: {counts}.")
        if former.replaces:
            notes.append(f"It replaced the one with the fingerprint {former.replaces}.")
    return notes


def identify(differential: Differential, part: str, fingerprint: str | None = None) -> UUID:
    """Return the identifier of a part of the report. fingerprint: of a former report of the same specimen.

    It is the same if the same images of a specimen are reported again; without hashes of the images, each
    request has identifiers of its own.
    """
    context = (differential.subject, differential.effectiveDateTime, differential.performer)
    return derive(
        differential.specimen or "",
        differential.accession or "",
        fingerprint or differential.fingerprint or differential.request_id,
        part,
        # A report of another patient is another one. Without these, identifiers are as they were before.
        *(text or "" for text in context if any(context)),
    )


def derive(*parts: str) -> UUID:
    """Return the same identifier for the same parts."""
    return uuid5(_NAMESPACE, "\n".join(parts))
