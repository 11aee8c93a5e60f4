"""Differential counts for the tests of reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from app.wire.differential import differential
from app.wire.specimen import ClassifiedCell, ClassifiedCells, Differential, Specimen
from tests.fake_classifier import FakeClassifier

AT = datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC)


def made(
    specimen: str | None = "S-1",
    accession: str | None = "A-1",
    labels: str = "neel",
    request_id: str = "r",
    **others: str,
) -> Differential:
    """Return a differential count. labels: classes by first letter; the last cell is marked for review."""
    names = {"e": "eosinophil", "l": "lymphocyte", "m": "monocyte", "n": "neutrophil"}
    cells = [
        ClassifiedCell(label=names[letter], confidence=0.9, image_sha256=f"{index:064x}")
        for index, letter in enumerate(labels)
    ]
    cells[-1] = cells[-1].model_copy(update={"review_reasons": ["low_confidence"]})
    whose = Specimen(specimen=specimen, accession=accession, **others)
    return differential(request_id, FakeClassifier().bundle, whose, dict(enumerate(cells)))


def count(labels: Sequence[str], found: Sequence[str], **others: str) -> Differential:
    """Return the differential count of a bundle with these labels. found: the label of each cell."""
    cells = {i: ClassifiedCell(label=label, image_sha256=f"{i:064x}") for i, label in enumerate(found)}
    bundle = replace(FakeClassifier().bundle, labels=tuple(labels))
    return differential("r", bundle, Specimen(specimen="S-1", **others), cells)


LABELS = ("eosinophil", "lymphocyte", "monocyte", "neutrophil", "platelet", "erythroblast")


def reviewed(
    *said: str | None,
    reviewer: str | None = "A. Smith",
    former: Differential | None = None,
    replaces: str | None = None,
    **others: str,
) -> Differential:
    """Return the count of cells that the model calls as LABELS, in their order, and a person as in `said`.

    The second and the third cell are marked for review. former: the report that is replaced.
    """
    marks = {1: ["low_confidence"], 2: ["blurred"]}
    labels = zip(LABELS, [*said, *[None] * (len(LABELS) - len(said))], strict=True)
    body = {
        "predictions": [
            {
                "label": label,
                "reviewed": person,
                "image_sha256": f"{index:064x}",
                "review_reasons": marks.get(index, []),
                "filename": "Doe.png",
            }
            for index, (label, person) in enumerate(labels)
        ],
        "specimen": "S-1",
        "accession": "A-1",
        "reviewer": reviewer,
        "replaces": former.fingerprint if former else replaces,
        "former": former and former.model_dump(),
        **others,
    }
    cells = ClassifiedCells.model_validate(body)
    bundle = replace(FakeClassifier().bundle, labels=LABELS)
    return differential("r", bundle, cells, dict(enumerate(cells.predictions)), sign_off=cells)


PRELIMINARY = reviewed(reviewer=None)
UNFINISHED = reviewed("eosinophil", "monocyte")
FINAL = reviewed("eosinophil", "monocyte", "unidentified", "not_a_cell")
CORRECTED = reviewed("monocyte", "lymphocyte", "neutrophil", reviewer="B. Jones", former=FINAL)
AGAIN = reviewed("monocyte", "monocyte", "unidentified", reviewer="C. Brown", former=CORRECTED)
THRICE = reviewed("eosinophil", "lymphocyte", "monocyte", reviewer="D. White", former=AGAIN)
