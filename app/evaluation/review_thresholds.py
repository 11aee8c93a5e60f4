"""Which cells may be kept without a review: thresholds, and what they cost, from cells of known class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 60  # candidates of the OOD score's threshold
POINTS = 40  # of a curve, at most

Floats = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Thresholds:
    """Cells with a lower confidence or a higher OOD score go to review."""

    confidence: float
    ood_score: float


@dataclass(frozen=True)
class Rules:
    """The thresholds of a bundle. familiar: those of pictures like its training pictures; None: the same."""

    thresholds: Thresholds
    familiar: Thresholds | None = None

    @property
    def loosest_ood_score(self) -> float:
        return max(one.ood_score for one in (self.thresholds, self.familiar) if one)

    def with_set(self, confidence: float | None = None, ood_score: float | None = None) -> Rules:
        """Return rules with this threshold for all pictures; None: as it is."""
        changes = {"confidence": confidence, "ood_score": ood_score}
        given = {name: value for name, value in changes.items() if value is not None}
        strict = replace(self.thresholds, **given)
        familiar = self.familiar and replace(self.familiar, **given)
        return Rules(strict, None if familiar == strict else familiar)

    def within(self, found: Thresholds) -> Rules:
        """Return rules with this confidence for all pictures and at most this OOD score for each.

        None of them is above what it was: cells of no class, which are not among labelled cells, are marked
        as before.
        """

        def tightened(one: Thresholds) -> Thresholds:
            return Thresholds(found.confidence, min(found.ood_score, one.ood_score))

        strict, familiar = tightened(self.thresholds), self.familiar and tightened(self.familiar)
        return Rules(strict, None if familiar == strict else familiar)


@dataclass(frozen=True)
class Kept:
    """What is kept from some confidence on: shares of all cells, and of the kept ones that are right."""

    confidence: float
    kept: float
    right: float


@dataclass(frozen=True)
class Cells:
    """n cells of known class. All arrays have shape [n].

    allowed: not sent to review for another reason, such as the picture's quality. weights: sum is positive.
    familiar: whether the picture looks like the model's training pictures; None: none does.
    """

    confidence: Floats
    ood_score: Floats
    right: Flags
    allowed: Flags
    weights: Floats
    familiar: Flags | None = None

    def keep_by(self, rules: Rules) -> Flags:
        kept = self.keep(rules.thresholds)
        if rules.familiar is None or self.familiar is None:
            return kept
        return np.where(self.familiar, self.keep(rules.familiar), kept)

    def guarded(self, rules: Rules) -> Cells:
        """Return the cells; only those that the rules' OOD scores do not send to review are allowed."""
        return replace(self, allowed=self.keep_by(rules.with_set(confidence=0.0)))

    def keep(self, thresholds: Thresholds) -> Flags:
        kept: Flags = (
            self.allowed
            & (self.confidence >= thresholds.confidence)
            & (self.ood_score <= thresholds.ood_score)
        )
        return kept

    def share(self, among: Flags) -> float:
        return float(self.weights[among].sum() / self.weights.sum())

    def right_share(self, among: Flags) -> float | None:
        """Return the share of these cells that is right; None if there are none."""
        total = float(self.weights[among].sum())
        return float(self.weights[among & self.right].sum()) / total if total else None


def propose(cells: Cells, target: float) -> Thresholds | None:
    """Return the thresholds that keep most cells while a share `target` of the kept is right.

    None if no thresholds do.
    """
    falling = _by_falling_confidence(cells)
    best, kept_by_best = None, 0.0
    for ood_score in np.unique(np.quantile(cells.ood_score, np.linspace(0, 1, STEPS), method="lower")):
        points = _points(falling, ood_score)
        enough = np.flatnonzero(points.right >= target)
        if len(enough) and (kept := float(points.kept[enough[-1]])) > kept_by_best:
            best, kept_by_best = Thresholds(float(points.confidence[enough[-1]]), float(ood_score)), kept
    return best


def curve(cells: Cells, ood_score: float) -> list[Kept]:
    """Return what up to `POINTS` thresholds of the confidence keep, from the highest down."""
    points = _points(_by_falling_confidence(cells), ood_score)
    columns = (points.confidence, points.kept, points.right)
    return thinned([Kept(*values) for values in np.stack(columns, axis=1).tolist()], POINTS)


def thinned(points: Sequence[Kept], most: int = 10) -> list[Kept]:
    """Return up to this many points of a curve, for a table."""
    n = len(points)
    places = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
    return [points[place] for place in places.tolist()]


@dataclass(frozen=True)
class _Points:
    """`Kept` of m confidences, as arrays [m]."""

    confidence: Floats
    kept: Floats
    right: Floats


def _by_falling_confidence(cells: Cells) -> Cells:
    order = np.argsort(-cells.confidence, kind="stable")
    columns = {field.name: getattr(cells, field.name) for field in fields(Cells)}
    return replace(cells, **{name: column[order] for name, column in columns.items() if column is not None})


def _points(falling: Cells, ood_score: float) -> _Points:
    """Return a point for each confidence that occurs among cells with at most this score."""
    members = falling.allowed & (falling.ood_score <= ood_score)
    confidence, weights = falling.confidence[members], falling.weights[members]
    kept, right = np.cumsum(weights), np.cumsum(weights * falling.right[members])
    ends = np.flatnonzero(np.diff(confidence, append=-np.inf))  # equal ones are kept together
    return _Points(confidence[ends], kept[ends] / falling.weights.sum(), right[ends] / kept[ends])
