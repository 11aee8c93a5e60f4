"""Percentile bootstrap of accuracy and macro F1, over images or over whole sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 2000
MOST_VALUES = 2**21  # of a step of resampling
MOST_IN_ORDER = 16  # counts of a unit; all that 4 classes can have

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Intervals:
    level: float
    unit: Literal["image", "group"]
    accuracy: tuple[float, float]
    macro_f1: tuple[float, float]


@dataclass(frozen=True)
class Tables:
    """A table of counts for each unit, [units, rows, columns], of which only counts above 0 are kept.

    200,000 images of 32 classes would take 1.6 GB otherwise. units, cells, counts [m]: the unit, place (row ·
    columns + column) and number of each, ordered by unit and place; every unit has some.
    """

    units: Ints
    cells: Ints
    counts: Ints
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def sum(self, axis: int) -> Ints:
        """Return the sum over units (0), rows (1) or columns (2), as of an array."""
        _, height, width = self.shape
        rows, columns = np.divmod(self.cells, width)
        place = (self.cells, self.units * width + columns, self.units * height + rows)[axis]
        shape = tuple(np.delete(self.shape, axis).tolist())
        total = np.bincount(place, self.counts, minlength=shape[0] * shape[1])
        return total.astype(np.int64).reshape(shape)

    def select(self, units: Ints) -> Tables:
        """Return the tables of these units, in this order."""
        numbers = np.full(len(self), -1)
        numbers[units] = np.arange(len(units))
        kept = np.flatnonzero(numbers[self.units] >= 0)
        kept = kept[np.argsort(numbers[self.units[kept]], kind="stable")]
        return Tables(
            numbers[self.units[kept]], self.cells[kept], self.counts[kept], (len(units), *self.shape[1:])
        )


def confusion_tables(units: Ints, labels: Ints, predictions: Ints, classes: int) -> Tables:
    """Return a confusion matrix per unit, [units, true, predicted]; units: the unit number of each image."""
    return count_by_unit(units, labels, predictions, classes, classes)


def count_by_unit(units: Ints, rows: Ints, columns: Ints, height: int, width: int) -> Tables:
    """Return a table of counts per unit, [units, height, width]; units, rows, columns: of each image."""
    places, counts = np.unique((units * height + rows) * width + columns, return_counts=True)
    unit, cells = np.divmod(places, height * width)
    return Tables(unit, cells, counts, (int(units.max()) + 1, height, width))


def true_classes(tables: Tables) -> Ints:
    """Return the class of each unit: its most frequent true label, the lowest index in a tie."""
    classes: Ints = tables.sum(axis=2).argmax(axis=1)
    return classes


def bootstrap(
    tables: Tables, *, unit: Literal["image", "group"], level: float, resamples: int, seed: int
) -> Intervals:
    """Return percentile intervals from a bootstrap stratified by class: resamples keep the units per class.

    Units are drawn whole, so that images of one source stay together. Without any error, or with one unit
    per class, all resamples are equal and the interval is a point.
    """
    drawn = resample(tables, resamples, seed)
    accuracy = np.trace(drawn, axis1=1, axis2=2) / drawn.sum(axis=(1, 2))
    return Intervals(level, unit, percentiles(accuracy, level), percentiles(_macro_f1(drawn), level))


def can_vary(tables: Tables) -> bool:
    """Return whether resamples can differ: whether a class has two units or more."""
    return bool(np.bincount(true_classes(tables)).max() > 1)


def balanced_interval(tables: Tables, level: float = LEVEL, seed: int = 0) -> tuple[float, float] | None:
    """Return the interval of the balanced accuracy, by the same bootstrap. Absent classes do not count.

    None if resamples cannot differ: a point would look like certainty.
    """
    if not can_vary(tables):
        return None
    drawn = resample(tables, RESAMPLES, seed)
    support, hits = drawn.sum(axis=2), np.diagonal(drawn, axis1=1, axis2=2)
    present = support > 0
    recalls = hits / np.where(present, support, 1)
    return percentiles(recalls.sum(axis=1) / present.sum(axis=1), level)


def resample(tables: Tables, resamples: int, seed: int) -> Ints:
    """Return the summed tables of each resample, [resamples, true class, columns].

    Units are drawn whole, as many of each class as there are. tables [units, true class, columns].
    """
    rng = np.random.default_rng(seed)
    strata = true_classes(tables)
    drawn = np.zeros((resamples, tables.shape[1] * tables.shape[2]), np.int64)
    for stratum in np.unique(strata):
        _add_stratum(rng, tables.select(np.flatnonzero(strata == stratum)), drawn)
    return drawn.reshape(resamples, *tables.shape[1:])


def _add_stratum(rng: np.random.Generator, tables: Tables, drawn: Ints) -> None:
    """Add to drawn [resamples, cells] the sums of as many of the tables as there are."""
    # Units with equal tables are drawn together: the same distribution with far fewer columns.
    kinds, numbers = _distinct(tables)
    by_cell = np.argsort(kinds.cells, kind="stable")
    cells, starts = np.unique(kinds.cells[by_cell], return_index=True)
    units, counts = kinds.units[by_cell], kinds.counts[by_cell]
    step = max(1, MOST_VALUES // len(units))
    for start in range(0, len(drawn), step):
        some = drawn[start : start + step]
        weights = rng.multinomial(len(tables), numbers / len(tables), size=len(some))
        some[:, cells] += np.add.reduceat(weights[:, units] * counts, starts, axis=1)


def _distinct(tables: Tables) -> tuple[Tables, Ints]:
    """Return the distinct tables, and how many units have each.

    np.unique(axis=0) holds the interpreter lock for as long as it sorts; np.lexsort does not.
    """
    keys = _keys(tables)
    order = np.lexsort(keys.T[::-1])
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], (keys[1:] != keys[:-1]).any(axis=1)]))
    return tables.select(order[starts]), np.diff(np.append(starts, len(tables)))


def _keys(tables: Tables) -> NDArray[Any]:
    """Return rows [units, k] that are equal for equal tables.

    For tables with few counts, rows are ordered as the tables are, cell by cell. For others they are sums of
    random numbers, which differ for different tables except with a chance of 1 in 10³⁰ or so.
    """
    starts = np.flatnonzero(np.diff(tables.units, prepend=-1))
    sizes = np.diff(np.append(starts, len(tables.units)))
    most, places = int(sizes.max()), tables.shape[1] * tables.shape[2]
    if most > MOST_IN_ORDER:
        random = np.random.default_rng(0).integers(2**63, size=(places, 2), dtype=np.uint64)
        terms = random[tables.cells] * tables.counts.astype(np.uint64)[:, None]
        return np.add.reduceat(terms, starts, axis=0)
    keys = np.zeros((len(tables), 2 * most), np.int64)
    keys[:, ::2] = -places
    position = np.arange(len(tables.units)) - starts[tables.units]
    keys[tables.units, 2 * position] = -tables.cells
    keys[tables.units, 2 * position + 1] = tables.counts
    return keys


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
