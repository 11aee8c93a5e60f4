"""What a report to a laboratory says, in whatever format: codes, texts and identifiers."""

from __future__ import annotations

from uuid import UUID, uuid5

from app.wire.specimen import Differential

LOINC = "http://loinc.org"
PANEL = "69738-3"  # differential panel, method unspecified, blood
# Per 100 leukocytes in blood, by the setting `loinc_method`. 26508-2, often taken for neutrophils, is bands.
CODES = {
    "none": {
        "neutrophil": "26511-6",
        "lymphocyte": "26478-8",
        "monocyte": "26485-3",
        "eosinophil": "26450-7",
    },
    "manual": {
        "neutrophil": "23761-0",
        "lymphocyte": "737-7",
        "monocyte": "744-3",
        "eosinophil": "714-6",
    },
    "automated": {
        "neutrophil": "770-8",
        "lymphocyte": "736-9",
        "monocyte": "5905-5",
        "eosinophil": "713-8",
    },
}
PANEL_NAME = "Differential panel - Blood"
METHOD = "Automated classification of images by a neural network"
NOTICE = "Made by artificial intelligence and not verified: a person must review it. Not for diagnosis."

_NAMESPACE = UUID("c4f6d8f0-6a57-5d1c-9b0e-2f0f3a7a6f6e")


def name(label: str) -> str:
    return f"{label.capitalize()}s/100 leukocytes in Blood"


def note(found: Differential, label: str) -> str:
    """How certain a percentage is."""
    (low, high), (least, most) = found.intervals.wilson[label], found.intervals.exact[label]
    level = f"{100 * found.intervals.level:g} % interval"
    return (
        f"{found.counts[label]} of {found.n} classified cells; {level} {low:.1f} to {high:.1f} (Wilson),"
        f" {least:.1f} to {most:.1f} (exact)"
    )


def remarks(found: Differential) -> list[str]:
    """What goes with the whole report."""
    said = [NOTICE, *(caution.detail for caution in found.warnings)]
    if found.review:
        said.append(f"{len(found.review)} of {found.n} cells are marked for review.")
    return said


def identify(found: Differential, part: str) -> UUID:
    """Of a part of the report: the same whenever the same images of a specimen are reported again."""
    whose = (found.specimen or "", found.accession or "", found.fingerprint or found.request_id, part)
    return uuid5(_NAMESPACE, "\n".join(whose))
