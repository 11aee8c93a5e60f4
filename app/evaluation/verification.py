"""How far a laboratory may trust the model: its own labelled cells, as the review marks leave them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from app.evaluation.differential_count import wilson
from app.evaluation.intervals import LEVEL, Floats, Ints, balanced_interval, confusion_tables
from app.evaluation.report import Score, number_units
from app.evaluation.review_thresholds import Cells, Flags, Kept, Rules, Thresholds, curve, propose

TARGET = 0.95  # of the kept cells are to be right
FEW_CELLS, FEW_OF_A_CLASS, FEW_GROUPS = 100, 20, 10  # fewer give a warning

Share = Annotated[float, Field(ge=0, le=1)]


# Marks, Proposal and Verification are also the wire types.


@dataclass(frozen=True)
class Marks:
    """What thresholds do to these cells: the share sent to review, and how much of the rest is right.

    familiar: thresholds of pictures that look like the model's training pictures; null: the same.
    others_marked: share of the bundle's reference cells of no class whose OOD score sends them to review, by
    the looser of the thresholds; null if it carries none.
    """

    thresholds: Thresholds
    review_share: Share
    right_when_kept: Score
    familiar: Thresholds | None = None
    others_marked: Score = None

    @property
    def rules(self) -> Rules:
        return Rules(self.thresholds, self.familiar)


@dataclass(frozen=True)
class Verification:
    """The model on a laboratory's own labelled cells. Nothing is stored.

    interval: of the balanced accuracy, from a bootstrap over `unit`; null if no class has two units. current:
    the bundle's own thresholds. proposed: those with which most cells are kept while `target` of them are
    right, with no OOD score above the bundle's; null if there are none. familiar_cells: how many have the
    thresholds of familiar pictures, if the bundle has such; null if it has not.
    curve: what is kept with the chosen OOD score, else the proposed, else the bundle's, and each confidence.
    chosen: those that the laboratory sets itself, by `leuko verify`.
    """

    cells: int
    groups: int | None
    by_class: dict[str, int]
    balanced_accuracy: Share
    level: float
    unit: Literal["image", "group"]
    interval: tuple[float, float] | None
    target: Share
    current: Marks
    proposed: Marks | None
    curve: list[Kept]
    warnings: list[str]
    chosen: Marks | None = None
    familiar_cells: int | None = None

    @property
    def recommended(self) -> Marks:
        return self.chosen or self.proposed or self.current


@dataclass(frozen=True)
class Answers:
    """The model's answers to n images.

    probabilities [n, classes]: NaN for an image that failed. ood_scores [n]. quality [n]: whether the picture
    itself sends the cell to review. reviewed [n]: whether anything does; None if only thresholds do, the same
    for all cells. familiar [n]: whether the picture looks like the model's training pictures; None: none
    does.
    """

    probabilities: Floats
    ood_scores: Floats
    quality: Flags
    reviewed: Flags | None = None
    familiar: Flags | None = None

    @classmethod
    def empty(cls, n: int, classes: int) -> Answers:
        marks = np.zeros((3, n), bool)
        return cls(np.full((n, classes), np.nan), np.full(n, np.nan), *marks)

    def take(self, rows: Sequence[int]) -> Answers:
        flags = (None if column is None else column[rows] for column in (self.reviewed, self.familiar))
        return Answers(self.probabilities[rows], self.ood_scores[rows], self.quality[rows], *flags)


def verify(
    labels: Ints,
    answers: Answers,
    current: Rules,
    *,
    names: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    target: float = TARGET,
    chosen: Rules | None = None,
    others: Floats | None = None,
) -> Verification:
    """Verify the answers against the labels, class indices [n]; all images have an answer.

    current: the bundle's thresholds. groups [n]: the patient, slide or photo of each image. chosen: the
    thresholds that the laboratory sets itself. others: OOD scores of the bundle's reference cells of no
    class.
    """
    predicted = answers.probabilities.argmax(axis=1)
    units = np.arange(len(labels)) if groups is None else number_units(groups, len(labels))
    tables = confusion_tables(units, labels, predicted, len(names))
    cells = cells_of(labels, answers)
    # Labelled cells are of the classes: they cannot tell how far an OOD score may rise.
    found = propose(cells.guarded(current), target)
    proposed = None if found is None else marks_of(cells, current.within(found), others=others)
    marks = None if chosen is None else marks_of(cells, chosen, others=others)
    by_class, sources = count_classes(labels, names), None if groups is None else len(tables)
    warnings = cautions(by_class, sources)
    if groups is not None and len(tables) > 1:
        warnings += _of_one_source(labels, groups, names)
    warnings += _loosened(chosen, current) + _shortfall(marks, proposed, target, len(labels))
    rules = chosen or (current if proposed is None else proposed.rules)
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
        current=marks_of(cells, current, answers.reviewed, others),
        proposed=proposed,
        curve=curve(cells.guarded(rules), np.inf),
        warnings=warnings,
        chosen=marks,
        familiar_cells=_familiar_cells(answers, current),
    )


def _familiar_cells(answers: Answers, rules: Rules) -> int | None:
    if rules.familiar is None:
        return None
    return 0 if answers.familiar is None else int(answers.familiar.sum())


def cells_of(labels: Ints, answers: Answers) -> Cells:
    """Return what review thresholds are judged on; all images have an answer."""
    return Cells(
        confidence=answers.probabilities.max(axis=1),
        ood_score=answers.ood_scores,
        right=answers.probabilities.argmax(axis=1) == labels,
        allowed=~answers.quality,
        weights=np.ones(len(labels)),
        familiar=answers.familiar,
    )


def marks_of(
    cells: Cells, rules: Rules, reviewed: Flags | None = None, others: Floats | None = None
) -> Marks:
    """Return what thresholds do. reviewed: which cells the model itself sent to review, whatever they say."""
    kept = cells.keep_by(rules) if reviewed is None else ~reviewed
    marked = None if others is None else float((others > rules.loosest_ood_score).mean())
    return Marks(rules.thresholds, 1 - cells.share(kept), cells.right_share(kept), rules.familiar, marked)


def data_hash(hashes: Sequence[str], labels: Sequence[int]) -> str:
    """Return the SHA-256 of the cells' own hashes with their labels, sorted: file names do not matter."""
    lines = sorted(f"{sha256} {label}" for sha256, label in zip(hashes, labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def count_classes(labels: Ints, names: Sequence[str]) -> dict[str, int]:
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))


def exactly(share: float) -> str:
    """Return a share in percent, with as many digits as it has."""
    return f"{100 * share:.6g}%"


def right_interval(marks: Marks, cells: int) -> tuple[int, tuple[float, float]] | None:
    """Return how many of the cells are kept, and Wilson's interval of how much of these is right, in percent.

    It takes cells as independent. None if no cell is kept.
    """
    kept = round((1 - marks.review_share) * cells)
    if marks.right_when_kept is None or not kept:
        return None
    return kept, wilson(round(marks.right_when_kept * kept), kept)


def _shortfall(chosen: Marks | None, proposed: Marks | None, target: float, cells: int) -> list[str]:
    """Say that thresholds do not reach the target, or that so few cells do not show that they do."""
    marks = chosen or proposed
    if marks is None:
        return [f"No thresholds keep cells of which {exactly(target)} are right: review all cells."]
    found = right_interval(marks, cells)
    if marks.right_when_kept is None or found is None:
        return ["The thresholds that were set keep no cell: all are reviewed."]
    right, (kept, (low, _)) = f"{marks.right_when_kept:.1%}", found
    if marks.right_when_kept < target:
        return [
            f"With the thresholds that were set, {right} of the kept cells are right, not {exactly(target)}."
        ]
    if low < 100 * target:
        return [
            f"{right} of the {kept} kept cells are right, but so few do not show that {exactly(target)} of"
            f" others are: it may be {low:.1f}%, and less, since thresholds are chosen on these cells."
        ]
    return []


def _loosened(chosen: Rules | None, current: Rules) -> list[str]:
    """Say that the laboratory's OOD score lets more cells of no class pass than the bundle's."""
    if chosen is None:
        return []
    strict, familiar = current.thresholds, current.familiar or current.thresholds
    pairs = ((chosen.thresholds, strict), (chosen.familiar or chosen.thresholds, familiar))
    if all(new.ood_score <= old.ood_score for new, old in pairs):
        return []
    bundle = f"{strict.ood_score:.4g}"
    if current.familiar is not None:
        bundle += f", and {familiar.ood_score:.4g} for pictures like those that it was trained on"
    return [
        f"The OOD score that was set, {chosen.loosest_ood_score:.4g}, is looser than the bundle's ({bundle}):"
        " more cells of no class are not sent to review. These labelled cells do not show how many."
    ]


def undivided(labels: Ints, groups: Sequence[Hashable]) -> list[int]:
    """Return the classes whose cells all come from one group."""
    found: dict[int, set[Hashable]] = defaultdict(set)
    for label, group in zip(labels.tolist(), groups, strict=True):
        found[label].add(group)
    return sorted(label for label, sources in found.items() if len(sources) < 2)


def _of_one_source(labels: Ints, groups: Sequence[Hashable], names: Sequence[str]) -> list[str]:
    counts = np.bincount(labels, minlength=len(names))
    single = [names[label] for label in undivided(labels, groups) if counts[label] > 1]
    if not single:
        return []
    return [
        f"All cells of {', '.join(single)} are of one patient or slide: how well others are recognised cannot"
        " be known."
    ]


def cautions(by_class: dict[str, int], groups: int | None) -> list[str]:
    """Return what such numbers of cells and of patients or slides cannot say; groups: None if not given."""
    n = sum(by_class.values())
    warnings = []
    if n < FEW_CELLS:
        warnings.append(f"{n} cell{'s say' if n > 1 else ' says'} little: use at least {FEW_CELLS}.")
    if missing := [name for name, count in by_class.items() if not count]:
        warnings.append(f"There are no cells of {', '.join(missing)}: nothing is known about them.")
    if few := [f"{name} ({count})" for name, count in by_class.items() if 0 < count < FEW_OF_A_CLASS]:
        warnings.append(f"Under {FEW_OF_A_CLASS} cells of {', '.join(few)}.")
    if groups is None:
        warnings.append(
            "Patients or slides were not given: cells of one slide resemble each other, so the interval is"
            " too narrow."
        )
    elif groups == 1:
        warnings.append("All cells are of one patient or slide: nothing is known about others.")
    elif groups < FEW_GROUPS:
        warnings.append(f"{groups} patients or slides are few: the interval is a rough guess.")
    return warnings
