"""Labels and predictions in, the full report out: pure functions over arrays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import BadLabels
from app.evaluation.intervals import Floats, Intervals, Ints, bootstrap, confusion_tables, true_classes

Indices = Sequence[int] | NDArray[Any]
Rows = Sequence[Sequence[float]] | NDArray[Any]
SUM_TOLERANCE = 1e-3  # how far a row of probabilities may be from 1 before it is refused


@dataclass(frozen=True)
class ClassScores:
    """One class against the rest; None where the denominator is 0, F1 also where there is no support."""

    precision: float | None
    recall: float | None
    f1: float | None
    specificity: float | None
    support: int


@dataclass(frozen=True)
class Average:
    """Means over the classes where the score is defined; None where it is defined for none.

    A weighted mean weighs those classes by support. An undefined score is left out, not taken as 0:
    read a macro precision beside `per_class`, which shows the class that was never predicted.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class GroupScores:
    """Sources judged whole, each against its majority true label."""

    n: int
    accuracy: float
    correct: int


@dataclass(frozen=True)
class Report:
    """Field names are those of `POST /evaluate`; `dataclasses.asdict` makes it JSON-ready."""

    n: int
    labels: tuple[str, ...]
    accuracy: float
    per_class: dict[str, ClassScores]
    macro_avg: Average
    weighted_avg: Average
    mse: float
    rmse: float
    confusion_matrix: tuple[tuple[int, ...], ...]  # [true][predicted]
    balanced_accuracy: float | None
    cohen_kappa: float | None
    matthews_corrcoef: float | None
    log_loss: float | None
    brier: float | None
    ece: float | None
    roc_auc_ovr: float | None
    confidence_intervals: Intervals
    groups: GroupScores | None


def evaluate(
    labels: Indices,
    predictions: Indices | None,
    probabilities: Rows | None = None,
    *,
    names: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Report:
    """labels, predictions: class indices [n]; probabilities [n, classes]; groups: the source of each image.

    Predictions default to the most probable class; where both are given, log loss, Brier, ECE and
    ROC AUC judge the probabilities, all else of images the predictions. Rows of probabilities are
    rescaled to sum to 1. Raises BadLabels, naming the first bad row.
    """
    true = _indices("labels", labels, len(names))
    soft = None if probabilities is None else _probabilities(probabilities, len(true), len(names))
    hard = _predictions(predictions, soft, len(true), len(names))
    units = np.arange(len(true)) if groups is None else _units(groups, len(true))
    unit = "image" if groups is None else "group"
    tables = confusion_tables(units, true, hard, len(names))
    intervals = bootstrap(tables, unit=unit, level=level, resamples=resamples, seed=seed)
    sources = None if groups is None else _group_scores(tables, units, soft)
    return _report(names, true, hard, soft, tables.sum(axis=0), intervals, sources)


def _report(
    names: Sequence[str],
    true: Ints,
    hard: Ints,
    soft: Floats | None,
    matrix: Ints,
    intervals: Intervals,
    sources: GroupScores | None,
) -> Report:
    # Imported late: scikit-learn costs a server a second or two and 100 MB that /predict never needs.
    from app.evaluation import scores

    per_class = {name: _class_scores(matrix, index) for index, name in enumerate(names)}
    macro = _average(per_class.values(), lambda _: 1)
    mse = float(np.square(true - hard).mean())  # the paper's equation 6
    return Report(
        n=len(true),
        labels=tuple(names),
        accuracy=float((true == hard).mean()),
        per_class=per_class,
        macro_avg=macro,
        weighted_avg=_average(per_class.values(), lambda one: one.support),
        mse=mse,
        rmse=mse**0.5,
        confusion_matrix=tuple(tuple(row) for row in matrix.tolist()),
        balanced_accuracy=macro.recall,
        cohen_kappa=scores.cohen_kappa(true, hard),
        matthews_corrcoef=scores.matthews_corrcoef(true, hard),
        **scores.judge(true, soft),
        confidence_intervals=intervals,
        groups=sources,
    )


def _class_scores(matrix: Ints, index: int) -> ClassScores:
    hit = int(matrix[index, index])
    support, called = int(matrix[index].sum()), int(matrix[:, index].sum())
    others = int(matrix.sum()) - support
    return ClassScores(
        precision=_ratio(hit, called),
        recall=_ratio(hit, support),
        f1=_ratio(2 * hit, support + called) if support else None,
        specificity=_ratio(others - (called - hit), others),
        support=support,
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _average(classes: Collection[ClassScores], weight: Callable[[ClassScores], int]) -> Average:
    def mean(field: str) -> float | None:
        found = [(getattr(one, field), weight(one)) for one in classes]
        defined = [(score, share) for score, share in found if score is not None]
        return _ratio(sum(score * share for score, share in defined), sum(share for _, share in defined))

    return Average(mean("precision"), mean("recall"), mean("f1"), sum(one.support for one in classes))


def _group_scores(tables: Ints, units: Ints, soft: Floats | None) -> GroupScores:
    """The class of a source is that of its mean probability, or without probabilities its majority vote."""
    votes: NDArray[Any] = tables.sum(axis=1)
    if soft is not None:
        votes = np.zeros((len(tables), soft.shape[1]))
        np.add.at(votes, units, soft)  # a sum points where the mean does
    correct = int((votes.argmax(axis=1) == true_classes(tables)).sum())
    return GroupScores(len(tables), correct / len(tables), correct)


def _indices(what: str, values: Indices, classes: int) -> Ints:
    found = np.asarray(values)
    if not len(found):
        raise BadLabels(f"no {what}: there is nothing to evaluate")
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise BadLabels(f"{what} must be whole numbers, the indices of classes")
    bad = (found < 0) | (found >= classes)
    if bad.any():
        row = int(bad.argmax())
        raise BadLabels(f"{what}[{row}] is {found[row]}, not the index of one of {classes} classes")
    return found.astype(np.int64)


def _predictions(values: Indices | None, soft: Floats | None, n: int, classes: int) -> Ints:
    if values is not None:
        _same_length("predictions", len(values), n)
        return _indices("predictions", values, classes)
    if soft is None:
        raise BadLabels("neither predictions nor probabilities are given")
    found: Ints = soft.argmax(axis=1)
    return found


def _probabilities(values: Rows, n: int, classes: int) -> Floats:
    _same_length("probabilities", len(values), n)
    for row, numbers in enumerate(values):
        if np.shape(numbers) != (classes,):
            raise BadLabels(f"probabilities[{row}] is not {classes} numbers, one for each class")
    found = np.asarray(values, np.float64)
    # Not a number is outside; huge numbers are clipped, for their sum would overflow.
    inside = np.all((found >= 0) & (found <= 1 + SUM_TOLERANCE), axis=1)
    sums = found.clip(0, 2).sum(axis=1, keepdims=True)
    usable = inside & (np.abs(sums[:, 0] - 1) <= SUM_TOLERANCE)
    if not usable.all():
        row = int(usable.argmin())
        fault = f"sums to {sums[row, 0]:.6g}, not to 1" if inside[row] else "has a number outside 0 to 1"
        raise BadLabels(f"probabilities[{row}] {fault}")
    rescaled: Floats = found / sums
    return rescaled


def _units(groups: Sequence[Hashable], n: int) -> Ints:
    _same_length("groups", len(groups), n)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups])


def _same_length(what: str, found: int, n: int) -> None:
    if found != n:
        raise BadLabels(f"{found} {what} for {n} labels: there must be one for each")
