"""Percentile bootstrap of accuracy and macro F1, over images or over whole sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 2000

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Intervals:
    level: float
    unit: Literal["image", "group"]
    accuracy: tuple[float, float]
    macro_f1: tuple[float, float]


def confusion_tables(units: Ints, labels: Ints, predictions: Ints, classes: int) -> Ints:
    """Return a confusion matrix per unit, [units, true, predicted]; units: the unit number of each image."""
    return count_by_unit(units, labels, predictions, classes, classes)


def count_by_unit(units: Ints, rows: Ints, columns: Ints, height: int, width: int) -> Ints:
    """Return a table of counts per unit, [units, height, width]; units, rows, columns: of each image."""
    cells = (units * height + rows) * width + columns
    size = (int(units.max()) + 1) * height * width
    return np.bincount(cells, minlength=size).reshape(-1, height, width)


def true_classes(tables: Ints) -> Ints:
    """Return the class of each unit: its most frequent true label, the lowest index in a tie."""
    classes: Ints = tables.sum(axis=2).argmax(axis=1)
    return classes


def bootstrap(
    tables: Ints, *, unit: Literal["image", "group"], level: float, resamples: int, seed: int
) -> Intervals:
    """Return percentile intervals from a bootstrap stratified by class: resamples keep the units per class.

    Units are drawn whole, so that images of one source stay together. Without any error, or with one unit
    per class, all resamples are equal and the interval is a point.
    """
    drawn = resample(tables, resamples, seed)
    accuracy = np.trace(drawn, axis1=1, axis2=2) / drawn.sum(axis=(1, 2))
    return Intervals(level, unit, percentiles(accuracy, level), percentiles(_macro_f1(drawn), level))


def balanced_interval(tables: Ints, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Return the interval of the balanced accuracy, by the same bootstrap. Absent classes do not count."""
    drawn = resample(tables, RESAMPLES, seed)
    support, hits = drawn.sum(axis=2), np.diagonal(drawn, axis1=1, axis2=2)
    present = support > 0
    recalls = hits / np.where(present, support, 1)
    return percentiles(recalls.sum(axis=1) / present.sum(axis=1), level)


def resample(tables: Ints, resamples: int, seed: int) -> Ints:
    """Return the summed tables of each resample, [resamples, true class, columns].

    Units are drawn whole, as many of each class as there are. tables [units, true class, columns].
    """
    rng = np.random.default_rng(seed)
    strata = true_classes(tables)
    drawn = np.zeros((resamples, *tables.shape[1:]), np.int64)
    for stratum in np.unique(strata):
        drawn += _of_stratum(rng, tables[strata == stratum], resamples)
    return drawn


def _of_stratum(rng: np.random.Generator, tables: Ints, resamples: int) -> Ints:
    # Units with equal tables are drawn together: the same distribution with far fewer columns.
    kinds, counts = _distinct(tables.reshape(len(tables), -1))
    weights: Ints = rng.multinomial(len(tables), counts / len(tables), size=resamples)
    return (weights @ kinds).reshape(resamples, *tables.shape[1:])


def _distinct(rows: Ints) -> tuple[Ints, Ints]:
    """Return the distinct rows in ascending order and their numbers, as np.unique(axis=0) does.

    That holds the interpreter lock for as long as it sorts; np.lexsort does not.
    """
    rows = rows[np.lexsort(rows.T[::-1])]
    starts = np.flatnonzero(np.concatenate([[True], (rows[1:] != rows[:-1]).any(axis=1)]))
    return rows[starts], np.diff(np.append(starts, len(rows)))


def _macro_f1(tables: Ints) -> Floats:
    support, called = tables.sum(axis=2), tables.sum(axis=1)
    hits = np.diagonal(tables, axis1=1, axis2=2)
    present = support > 0
    f1 = 2 * hits / np.where(present, support + called, 1)
    means: Floats = f1.sum(axis=1) / present.sum(axis=1)
    return means


def percentiles(values: Floats, level: float) -> tuple[float, float]:
    """Return the interval that holds this share of the values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
