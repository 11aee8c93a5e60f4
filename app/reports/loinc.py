"""Codes, texts and identifiers of laboratory reports, common to all formats."""

from __future__ import annotations

from uuid import UUID, uuid5

from app.wire.specimen import Differential

LOINC = "http://loinc.org"
PANEL = "69738-3"  # differential panel, method unspecified, blood
# Per 100 leukocytes in blood, by the setting loinc_method. 26508-2, often used for neutrophils, is for bands.
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
NOTICE = "Made by artificial intelligence and not reviewed: a person must review it. Not for diagnosis."

_NAMESPACE = UUID("c4f6d8f0-6a57-5d1c-9b0e-2f0f3a7a6f6e")


def name(label: str) -> str:
    return f"{label.capitalize()}s/100 leukocytes in Blood"


def note(differential: Differential, label: str) -> str:
    """Return the count of a class and the confidence intervals of its percentage."""
    (low, high), (least, most) = differential.intervals.wilson[label], differential.intervals.exact[label]
    level = f"{100 * differential.intervals.level:g} % interval"
    return (
        f"{differential.counts[label]} of {differential.n} classified cells;"
        f" {level} {low:.1f} to {high:.1f} (Wilson), {least:.1f} to {most:.1f} (exact)"
    )


def about_site(differential: Differential) -> list[str]:
    """Return in a sentence whether the model was verified for this laboratory; nothing if that is unknown."""
    if differential.site:
        day = differential.site.verified_at[:10]
        return [f"The model was verified for {differential.site.name} on {day}."]
    return [caution.detail for caution in differential.warnings if caution.code == "not_verified"]


def remarks(differential: Differential) -> list[str]:
    """Return the notes on the whole report."""
    notes = [NOTICE, *(caution.detail for caution in differential.warnings)]
    if differential.site:
        notes += about_site(differential)
    if differential.review:
        notes.append(f"{len(differential.review)} of {differential.n} cells are marked for review.")
    return notes


def identify(differential: Differential, part: str) -> UUID:
    """Return the identifier of a part of the report.

    It is the same if the same images of a specimen are reported again; without hashes of the images, each
    request has identifiers of its own.
    """
    context = (differential.subject, differential.effectiveDateTime, differential.performer)
    return derive(
        differential.specimen or "",
        differential.accession or "",
        differential.fingerprint or differential.request_id,
        part,
        # A report of another patient is another one. Without these, identifiers are as they were before.
        *(text or "" for text in context if any(context)),
    )


def derive(*parts: str) -> UUID:
    """Return the same identifier for the same parts."""
    return uuid5(_NAMESPACE, "\n".join(parts))
