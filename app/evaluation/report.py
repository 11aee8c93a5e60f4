"""The evaluation report, computed from labels and predictions by pure functions over arrays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from app.errors import BadLabels
from app.evaluation import scores
from app.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    Floats,
    Intervals,
    Ints,
    Tables,
    bootstrap,
    confusion_tables,
    true_classes,
)

Indices = Sequence[int] | NDArray[Any]
Rows = Sequence[Sequence[float]] | NDArray[Any]
Score = Annotated[float | None, Field(description="null if undefined for these data")]

SUM_TOLERANCE = 1e-3  # a row of probabilities whose sum differs from 1 by more is refused


# ClassScores, Average, GroupScores and Intervals are also the wire types: a docstring becomes the description
# in the OpenAPI document.


# One class against the rest. A score is None if its denominator is 0; F1 also without support.
@dataclass(frozen=True)
class ClassScores:
    precision: Score
    recall: Score
    f1: Score
    specificity: Score
    support: int


# Means over the classes for which the score is defined; None if it is defined for none. A weighted mean
# weights these classes by support. An undefined score is left out, not counted as 0: read a macro precision
# together with `per_class`, which shows a class that was never predicted.
@dataclass(frozen=True)
class Average:
    precision: Score
    recall: Score
    f1: Score
    support: int


@dataclass(frozen=True)
class GroupScores:
    """Scores of whole sources, each classified by the mean probabilities of its images."""

    n: int
    accuracy: float
    correct: int


@dataclass(frozen=True)
class Report:
    """All metrics of one set, with the field names of `POST /evaluate`; `asdict` makes it JSON-ready."""

    n: int
    labels: tuple[str, ...]
    accuracy: float
    per_class: dict[str, ClassScores]
    macro_avg: Average
    weighted_avg: Average
    mse: float
    rmse: float
    confusion_matrix: tuple[tuple[int, ...], ...]  # [true][predicted]
    balanced_accuracy: Score
    cohen_kappa: Score
    matthews_corrcoef: Score
    log_loss: Score
    brier: Score
    ece: Score
    roc_auc_ovr: Score
    confidence_intervals: Intervals
    groups: GroupScores | None


def evaluate(
    labels: Indices,
    predictions: Indices | None,
    probabilities: Rows | None = None,
    *,
    names: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Report:
    """Return the report on labels and predictions, class indices [n], and probabilities [n, classes].

    groups: the source of each image; the intervals are then over sources instead of images. Predictions
    default to the most probable class. If predictions and probabilities are given, log loss, Brier, ECE,
    ROC AUC and the scores of groups use the probabilities, all other scores the predictions. Rows of
    probabilities are rescaled to sum to 1. Raise BadLabels, naming the first bad row.
    """
    true = _indices("labels", labels, len(names))
    soft = None if probabilities is None else _probabilities(probabilities, len(true), len(names))
    hard = _predictions(predictions, soft, len(true), len(names))
    units = np.arange(len(true)) if groups is None else number_units(groups, len(true))
    tables = confusion_tables(units, true, hard, len(names))
    intervals = bootstrap(
        tables, unit="image" if groups is None else "group", level=level, resamples=resamples, seed=seed
    )
    group_scores = None if groups is None else _group_scores(tables, units, soft)
    return _report(names, true, hard, soft, tables.sum(axis=0), intervals, group_scores)


def _report(
    names: Sequence[str],
    true: Ints,
    hard: Ints,
    soft: Floats | None,
    matrix: Ints,
    intervals: Intervals,
    group_scores: GroupScores | None,
) -> Report:
    per_class = {name: _class_scores(matrix, index) for index, name in enumerate(names)}
    macro = _average(per_class.values(), lambda _: 1)
    mse = float(np.square(true - hard).mean())  # the paper's equation 6
    return Report(
        n=len(true),
        labels=tuple(names),
        accuracy=float((true == hard).mean()),
        per_class=per_class,
        macro_avg=macro,
        weighted_avg=_average(per_class.values(), lambda of_class: of_class.support),
        mse=mse,
        rmse=mse**0.5,
        confusion_matrix=tuple(tuple(row) for row in matrix.tolist()),
        balanced_accuracy=macro.recall,
        cohen_kappa=scores.cohen_kappa(matrix),
        matthews_corrcoef=scores.matthews_corrcoef(matrix),
        **scores.judge(true, soft),
        confidence_intervals=intervals,
        groups=group_scores,
    )


def _class_scores(matrix: Ints, index: int) -> ClassScores:
    hits = int(matrix[index, index])
    support, predicted = int(matrix[index].sum()), int(matrix[:, index].sum())
    others = int(matrix.sum()) - support
    return ClassScores(
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, support + predicted) if support else None,
        specificity=_ratio(others - (predicted - hits), others),
        support=support,
    )


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _average(classes: Collection[ClassScores], weight: Callable[[ClassScores], int]) -> Average:
    def mean(field: str) -> float | None:
        weighted = [(getattr(scores, field), weight(scores)) for scores in classes]
        defined = [(score, share) for score, share in weighted if score is not None]
        return _ratio(sum(score * share for score, share in defined), sum(share for _, share in defined))

    return Average(mean("precision"), mean("recall"), mean("f1"), sum(scores.support for scores in classes))


def _group_scores(tables: Tables, units: Ints, soft: Floats | None) -> GroupScores:
    """Score each source as a whole against its most frequent true label.

    The predicted class of a source is that of the highest mean probability; without probabilities it is the
    most frequent prediction.
    """
    votes: NDArray[Any] = tables.sum(axis=1)
    if soft is not None:
        # The sum has the same argmax as the mean.
        sums = [np.bincount(units, column, minlength=len(tables)) for column in soft.T]
        votes = np.stack(sums, axis=1)
    correct = int((votes.argmax(axis=1) == true_classes(tables)).sum())
    return GroupScores(len(tables), correct / len(tables), correct)


def _indices(what: str, values: Indices, classes: int) -> Ints:
    indices = np.asarray(values)
    if not len(indices):
        raise BadLabels(f"no {what}: there is nothing to evaluate")
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise BadLabels(f"{what} must be whole numbers, the indices of classes")
    bad = (indices < 0) | (indices >= classes)
    if bad.any():
        row = int(bad.argmax())
        raise BadLabels(f"{what}[{row}] is {indices[row]}, not the index of one of {classes} classes")
    return indices.astype(np.int64)


def _predictions(values: Indices | None, soft: Floats | None, n: int, classes: int) -> Ints:
    if values is not None:
        _same_length("predictions", len(values), n)
        return _indices("predictions", values, classes)
    if soft is None:
        raise BadLabels("neither predictions nor probabilities are given")
    most_probable: Ints = soft.argmax(axis=1)
    return most_probable


def _probabilities(values: Rows, n: int, classes: int) -> Floats:
    _same_length("probabilities", len(values), n)
    if not isinstance(values, np.ndarray) or values.shape[1:] != (classes,):
        for row, numbers in enumerate(values):
            if np.shape(numbers) != (classes,):
                raise BadLabels(f"probabilities[{row}] is not {classes} numbers, one for each class")
    probabilities = np.asarray(values, np.float64)
    # NaN is outside; large numbers are clipped, since their sum could overflow.
    inside = np.all((probabilities >= 0) & (probabilities <= 1 + SUM_TOLERANCE), axis=1)
    sums = probabilities.clip(0, 2).sum(axis=1, keepdims=True)
    usable = inside & (np.abs(sums[:, 0] - 1) <= SUM_TOLERANCE)
    if not usable.all():
        row = int(usable.argmin())
        fault = f"sums to {sums[row, 0]:.6g}, not to 1" if inside[row] else "has a number outside 0 to 1"
        raise BadLabels(f"probabilities[{row}] {fault}")
    rescaled: Floats = probabilities / sums
    return rescaled


def number_units(groups: Sequence[Hashable], n: int) -> Ints:
    """Return the number of each image's group, from 0. Raise BadLabels unless there are n."""
    _same_length("groups", len(groups), n)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups])


def _same_length(what: str, length: int, n: int) -> None:
    if length != n:
        raise BadLabels(f"{length} {what} for {n} labels: there must be one for each")
