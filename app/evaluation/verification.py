"""How far a laboratory may trust the model: its own labelled cells, as the review marks leave them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from app.evaluation.intervals import LEVEL, Floats, Ints, balanced_interval, confusion_tables
from app.evaluation.report import Score, number_units
from app.evaluation.review_thresholds import Cells, Flags, Kept, Thresholds, curve, propose

TARGET = 0.95  # of the kept cells are to be right
FEW_CELLS, FEW_OF_A_CLASS, FEW_GROUPS = 100, 20, 10  # fewer give a warning

Share = Annotated[float, Field(ge=0, le=1)]


# Marks, Proposal and Verification are also the wire types.


@dataclass(frozen=True)
class Marks:
    """What thresholds do to these cells: the share sent to review, and how much of the rest is right."""

    thresholds: Thresholds
    review_share: Share
    right_when_kept: Score


@dataclass(frozen=True)
class Verification:
    """The model on a laboratory's own labelled cells. Nothing is stored.

    interval: of the balanced accuracy, from a bootstrap over `unit`. current: the bundle's own thresholds.
    proposed: those with which most cells are kept while `target` of them are right; null if there are none.
    curve: what is kept with the chosen OOD score, else the proposed, else the bundle's, and each confidence.
    chosen: those that the laboratory sets itself, by `leuko verify`.
    """

    cells: int
    groups: int | None
    by_class: dict[str, int]
    balanced_accuracy: Share
    level: float
    unit: Literal["image", "group"]
    interval: tuple[float, float]
    target: Share
    current: Marks
    proposed: Marks | None
    curve: list[Kept]
    warnings: list[str]
    chosen: Marks | None = None

    @property
    def recommended(self) -> Marks:
        return self.chosen or self.proposed or self.current


@dataclass(frozen=True)
class Answers:
    """The model's answers to n images.

    probabilities [n, classes]: NaN for an image that failed. ood_scores [n]. quality [n]: whether the picture
    itself sends the cell to review. reviewed [n]: whether anything does; None if only thresholds do, the same
    for all cells.
    """

    probabilities: Floats
    ood_scores: Floats
    quality: Flags
    reviewed: Flags | None = None

    @classmethod
    def empty(cls, n: int, classes: int) -> Answers:
        marks = np.zeros((2, n), bool)
        return cls(np.full((n, classes), np.nan), np.full(n, np.nan), *marks)

    def take(self, rows: Sequence[int]) -> Answers:
        reviewed = None if self.reviewed is None else self.reviewed[rows]
        return Answers(self.probabilities[rows], self.ood_scores[rows], self.quality[rows], reviewed)


def verify(
    labels: Ints,
    answers: Answers,
    current: Thresholds,
    *,
    names: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    target: float = TARGET,
    chosen: Thresholds | None = None,
) -> Verification:
    """Verify the answers against the labels, class indices [n]; all images have an answer.

    current: the bundle's thresholds. groups [n]: the patient, slide or photo of each image. chosen: the
    thresholds that the laboratory sets itself.
    """
    predicted = answers.probabilities.argmax(axis=1)
    units = np.arange(len(labels)) if groups is None else number_units(groups, len(labels))
    tables = confusion_tables(units, labels, predicted, len(names))
    cells = cells_of(labels, answers)
    thresholds = propose(cells, target)
    marks = None if chosen is None else marks_of(cells, chosen)
    by_class, sources = count_classes(labels, names), None if groups is None else len(tables)
    warnings = cautions(by_class, sources) + _shortfall(marks, thresholds, target)
    matrix = tables.sum(axis=0)
    support = matrix.sum(axis=1)
    recalls = np.diagonal(matrix)[support > 0] / support[support > 0]
    return Verification(
        cells=len(labels),
        groups=sources,
        by_class=by_class,
        balanced_accuracy=float(recalls.mean()),
        level=LEVEL,
        unit="image" if groups is None else "group",
        interval=balanced_interval(tables),
        target=target,
        current=marks_of(cells, current, answers.reviewed),
        proposed=None if thresholds is None else marks_of(cells, thresholds),
        curve=curve(cells, (chosen or thresholds or current).ood_score),
        warnings=warnings,
        chosen=marks,
    )


def cells_of(labels: Ints, answers: Answers) -> Cells:
    """Return what review thresholds are judged on; all images have an answer."""
    return Cells(
        confidence=answers.probabilities.max(axis=1),
        ood_score=answers.ood_scores,
        right=answers.probabilities.argmax(axis=1) == labels,
        allowed=~answers.quality,
        weights=np.ones(len(labels)),
    )


def marks_of(cells: Cells, thresholds: Thresholds, reviewed: Flags | None = None) -> Marks:
    """Return what thresholds do. reviewed: which cells the model itself sent to review, whatever they say."""
    kept = cells.keep(thresholds) if reviewed is None else ~reviewed
    return Marks(thresholds, 1 - cells.share(kept), cells.right_share(kept))


def count_classes(labels: Ints, names: Sequence[str]) -> dict[str, int]:
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))


def _shortfall(chosen: Marks | None, proposed: Thresholds | None, target: float) -> list[str]:
    """Say that thresholds do not reach the target."""
    if chosen is None:
        none = f"No thresholds keep cells of which {target:.0%} are right: review all cells."
        return [none] if proposed is None else []
    if chosen.right_when_kept is None:
        return ["The thresholds that were set keep no cell: all are reviewed."]
    if chosen.right_when_kept < target:
        right = f"{chosen.right_when_kept:.1%}"
        return [f"With the thresholds that were set, {right} of the kept cells are right, not {target:.0%}."]
    return []


def cautions(by_class: dict[str, int], groups: int | None) -> list[str]:
    """Return what such numbers of cells and of patients or slides cannot say; groups: None if not given."""
    n = sum(by_class.values())
    warnings = []
    if n < FEW_CELLS:
        warnings.append(f"{n} cells say little: use at least {FEW_CELLS}.")
    if missing := [name for name, count in by_class.items() if not count]:
        warnings.append(f"There are no cells of {', '.join(missing)}: nothing is known about them.")
    if few := [f"{name} ({count})" for name, count in by_class.items() if 0 < count < FEW_OF_A_CLASS]:
        warnings.append(f"Under {FEW_OF_A_CLASS} cells of {', '.join(few)}.")
    if groups is None:
        warnings.append(
            "Patients or slides were not given: cells of one slide resemble each other, so the interval is"
            " too narrow."
        )
    elif groups < FEW_GROUPS:
        warnings.append(f"{groups} patients or slides are few: the interval is a rough guess.")
    return warnings
