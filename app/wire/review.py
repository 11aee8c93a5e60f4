"""A person's review of classified cells: what is counted, what is left to review, the report's status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.errors import BadLabels
from app.evaluation.differential_count import fingerprint
from app.wire.schemas import Caution, Prediction
from app.wire.specimen import (
    NOT_A_CELL,
    UNIDENTIFIED,
    Agreement,
    ChangedCell,
    ClassifiedCell,
    FormerReport,
    ReviewedCell,
    SignOff,
    Status,
    replaced_reports,
)

Cell = Prediction | ClassifiedCell
Cells = Mapping[int, Cell]  # by position in the request

UNSIGNED = SignOff()


def reviewed(cell: Cell) -> str | None:
    """Return what a person said of a cell; None: nothing."""
    return cell.reviewed if isinstance(cell, ClassifiedCell) else None


def has_review(cells: Cells, sign_off: SignOff) -> bool:
    return sign_off.reviewer is not None or any(map(reviewed, cells.values()))


def check_labels(cells: Cells, labels: Sequence[str]) -> None:
    """Raise BadLabels for a label that the model does not have and a review cannot give."""
    allowed = (*labels, UNIDENTIFIED, NOT_A_CELL)
    for index, cell in cells.items():
        if cell.label not in labels:
            raise BadLabels(f"the label of prediction {index} is none of {', '.join(labels)}")
        if reviewed(cell) not in (None, *allowed):
            raise BadLabels(f"reviewed of prediction {index} is none of {', '.join(allowed)}")


def rows(labels: Sequence[str], *, with_review: bool) -> list[str]:
    """Return the classes that a count lists. A review has one more, also if it is empty: a receiver that
    keeps the rows of a former report must learn that there are no such cells any more.
    """
    return [*labels, *([UNIDENTIFIED] if with_review and UNIDENTIFIED not in labels else [])]


def counted(cells: Cells) -> dict[int, str]:
    """Return the label that counts for each cell, without what a person called no cell."""
    labels = {index: reviewed(cell) or cell.label for index, cell in cells.items()}
    return {index: label for index, label in labels.items() if reviewed(cells[index]) != NOT_A_CELL}


def left(cells: Cells) -> list[ReviewedCell]:
    """Return the cells that a person must still look at."""
    return [
        ReviewedCell(
            **_place(index, cell), label=cell.label, confidence=cell.confidence, reasons=cell.review_reasons
        )
        for index, cell in cells.items()
        if cell.review_reasons and reviewed(cell) is None
    ]


def changes(cells: Cells) -> list[ChangedCell]:
    """Return the cells to which a person gave another label than the model."""
    return [
        ChangedCell(**_place(index, cell), label=cell.label, reviewed=label)
        for index, cell in cells.items()
        if (label := reviewed(cell)) is not None and label != cell.label
    ]


def fields(cells: Cells, sign_off: SignOff, model_sha256: str) -> dict[str, Any]:
    """Return the fields of a differential count that its review gives. model_sha256: of the model."""
    to_review, changed = left(cells), changes(cells)
    status = _status(sign_off, len(to_review))
    said = [label for cell in cells.values() if (label := reviewed(cell)) is not None]
    images = [image for cell in cells.values() if (image := identity(cell)) is not None]
    labels = [f" {reviewed(cell)}" if reviewed(cell) else "" for cell in cells.values()]
    known = len(images) == len(cells)
    plain = fingerprint(model_sha256, images) if known else None
    whole = plain
    if known and has_review(cells, sign_off):
        labelled = [image + label for image, label in zip(images, labels, strict=True)]
        whole = fingerprint(model_sha256, labelled, _describe(sign_off, status))
    return {
        "status": status,
        **{name: getattr(sign_off, name) for name in SignOff.model_fields},
        "fingerprint": whole,
        "unreviewed_fingerprint": plain,
        "not_a_cell": said.count(NOT_A_CELL),
        "agreement": Agreement(reviewed=len(said), kept=len(said) - len(changed)),
        "changes": changed,
        "review": to_review,
    }


def cautions(cells: Cells, sign_off: SignOff) -> list[Caution]:
    """Return what a reader must know of a review."""
    labels, open_cells, found = [*counted(cells).values()], len(left(cells)), []
    if unidentified := sum(reviewed(cell) == UNIDENTIFIED for cell in cells.values()):
        detail = f"{unidentified} of {len(labels)} cells could not be identified. They count as leukocytes."
        found.append(Caution(code="cells_unidentified", detail=detail))
    if sign_off.reviewer and open_cells:
        detail = f"{open_cells} cells marked for review have not been reviewed: the report stays preliminary."
        found.append(Caution(code="review_incomplete", detail=detail))
    reports: list[SignOff | FormerReport] = [sign_off, *replaced_reports(sign_off)]
    earliest = reports[-1]  # of those that were sent
    if earliest.replaces or (isinstance(earliest, FormerReport) and earliest.status == "corrected"):
        which = "This report" if earliest is sign_off else "The earliest report that is named here"
        detail = f"{which} replaces another, whose values were not sent and are not in it."
        found.append(Caution(code="former_values_missing", detail=detail))
    return found


def identity(cell: Cell) -> str | None:
    """Return what tells a cell from others, which may be of the same image; None without its hash."""
    if cell.image_sha256 is None:
        return None
    return cell.image_sha256 if cell.cell is None else f"{cell.image_sha256}#{cell.cell}"


def _status(sign_off: SignOff, open_cells: int) -> Status:
    if sign_off.reviewer is None or open_cells:
        return "preliminary"
    return "corrected" if sign_off.replaces else "final"


def _describe(sign_off: SignOff, status: Status) -> list[str]:
    """Return what tells a report from others of the same cells with the same labels, for its fingerprint."""
    return [f"status {status}", f"reviewer {sign_off.reviewer or ''}", f"replaces {sign_off.replaces or ''}"]


def _place(index: int, cell: Cell) -> dict[str, Any]:
    return {
        "index": cell.index if isinstance(cell, Prediction) else index,
        "cell": cell.cell,
        "filename": cell.filename,
        "image_sha256": cell.image_sha256,
    }
