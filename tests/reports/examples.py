"""Differential counts for the tests of reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from app.wire.differential import differential
from app.wire.specimen import ClassifiedCell, Differential, Specimen
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
