"""Two models on the same cells: which is right more often, and how well these cells can tell."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from app.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    Floats,
    Ints,
    can_vary,
    count_by_unit,
    percentiles,
    resample,
)
from app.evaluation.report import number_units
from app.evaluation.review_thresholds import Rules
from app.evaluation.verification import Answers, Marks, cautions, cells_of, count_classes, marks_of

BOTH, ONLY_FIRST, ONLY_SECOND, NEITHER = range(4)  # which model is right about a cell
NOT_INDEPENDENT = (
    "McNemar's test takes all cells as independent: with several of one patient or slide its p-value is too"
    " small."
)


@dataclass(frozen=True)
class Change:
    """A score of both models. difference: the second's minus the first's, with its interval.

    interval: None if no class has two units, so that resamples cannot differ.
    """

    first: float
    second: float
    difference: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Rights:
    """Numbers of cells by which model is right."""

    both: int
    only_first: int
    only_second: int
    neither: int


@dataclass(frozen=True)
class ClassComparison:
    """The cells of a class. recall: None if there are none."""

    cells: int
    rights: Rights
    recall: Change | None


@dataclass(frozen=True)
class Comparison:
    """Two models on the same cells.

    Intervals are from a bootstrap over `unit`, both models on the same resamples. p_value: of McNemar's exact
    test, two-sided. first, second: what each model's own review thresholds do.
    """

    cells: int
    groups: int | None
    level: float
    unit: Literal["image", "group"]
    rights: Rights
    p_value: float
    accuracy: Change
    balanced_accuracy: Change
    by_class: dict[str, ClassComparison]
    first: Marks
    second: Marks
    warnings: list[str]


def compare(
    labels: Ints,
    answers: tuple[Answers, Answers],
    rules: tuple[Rules, Rules],
    *,
    names: Sequence[str],
    groups: Sequence[Hashable] | None = None,
) -> Comparison:
    """Compare two models' answers to the same cells with their labels, class indices [n].

    rules: the review thresholds of each model. groups [n]: the patient, slide or photo of each cell.
    """
    units = np.arange(len(labels)) if groups is None else number_units(groups, len(labels))
    first, second = (one.probabilities.argmax(axis=1) == labels for one in answers)
    outcomes = np.where(first, np.where(second, BOTH, ONLY_FIRST), np.where(second, ONLY_SECOND, NEITHER))
    tables = count_by_unit(units, labels, outcomes, len(names), 4)
    drawn = resample(tables, RESAMPLES, 0) if can_vary(tables) else None
    table = tables.sum(axis=0)
    total, sources = _rights(table.sum(axis=0)), None if groups is None else len(tables)
    warnings = cautions(count_classes(labels, names), sources)
    if sources is None or sources < len(labels):
        warnings.append(NOT_INDEPENDENT)
    marks = [
        marks_of(cells_of(labels, one), own, one.reviewed) for one, own in zip(answers, rules, strict=True)
    ]
    return Comparison(
        cells=len(labels),
        groups=sources,
        level=LEVEL,
        unit="image" if groups is None else "group",
        rights=total,
        p_value=mcnemar(total.only_first, total.only_second),
        accuracy=_change(_accuracy, table, drawn),
        balanced_accuracy=_change(_balanced, table, drawn),
        by_class={
            name: _of_class(table[i], None if drawn is None else drawn[:, i]) for i, name in enumerate(names)
        },
        first=marks[0],
        second=marks[1],
        warnings=warnings,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (McNemar 1947).

    Of the cells that one model alone is right about, each model has half by chance.
    """
    n = only_first + only_second
    ways = least = 1  # n over k, and its sum up to the smaller number; integers are exact however large
    for k in range(min(only_first, only_second)):
        ways = ways * (n - k) // (k + 1)
        least += ways
    return min(1.0, 2 * least / (1 << n))


def _rights(counts: Ints) -> Rights:
    return Rights(*counts.tolist())


def _of_class(counts: Ints, drawn: Ints | None) -> ClassComparison:
    """counts [4]; drawn [resamples, 4]."""
    cells = int(counts.sum())
    if drawn is not None:
        drawn = drawn[drawn.sum(axis=1) > 0]
    recall = _change(_shares, counts, drawn) if cells else None
    return ClassComparison(cells, _rights(counts), recall)


def _change(score: Callable[[Ints], Floats], table: Ints, drawn: Ints | None) -> Change:
    """score: of tables [n, …], the first and the second model's [n, 2]. drawn: resamples of the table."""
    first, second = score(table[None])[0].tolist()
    interval = None
    if drawn is not None:
        scores = score(drawn)
        interval = percentiles(scores[:, 1] - scores[:, 0], LEVEL)
    return Change(first, second, second - first, interval)


def _accuracy(tables: Ints) -> Floats:
    """tables [n, classes, 4] → [n, 2]."""
    return _shares(tables.sum(axis=1))


def _balanced(tables: Ints) -> Floats:
    """tables [n, classes, 4] → mean recalls [n, 2]; absent classes do not count."""
    present = tables.sum(axis=2) > 0
    recalls = np.where(present[..., None], _shares(tables), 0)
    means: Floats = recalls.sum(axis=1) / present.sum(axis=1)[:, None]
    return means


def _shares(counts: Ints) -> Floats:
    """counts [..., 4] → shares that the first and the second model are right about [..., 2]."""
    cells = np.maximum(counts.sum(axis=-1), 1)
    right = (counts[..., BOTH] + counts[..., ONLY_FIRST], counts[..., BOTH] + counts[..., ONLY_SECOND])
    shares: Floats = np.stack(right, axis=-1) / cells[..., None]
    return shares
