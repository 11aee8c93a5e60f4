"""The differential count of a specimen's cells, with confidence intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95  # of the confidence intervals

Interval = tuple[float, float]  # percent


@dataclass(frozen=True)
class Count:
    """n: cells of one class; of: all classified cells; percent and the intervals are percentages of `of`."""

    n: int
    of: int
    percent: float
    wilson: Interval
    exact: Interval


def count(labels: Sequence[str], names: Sequence[str]) -> dict[str, Count]:
    """Return the count of each class in `names` among `labels`, the predicted classes; at least one label."""
    of = len(labels)
    return {name: describe(labels.count(name), of) for name in names}


def describe(n: int, of: int) -> Count:
    return Count(n, of, 100 * n / of, wilson(n, of), exact(n, of))


def wilson(n: int, of: int, level: float = LEVEL) -> Interval:
    """Return the score interval of a proportion (Wilson 1927), in percent, without continuity correction."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = n / of, z * z / of
    centre = (share + weight / 2) / (1 + weight)
    half = (z / (1 + weight)) * (share * (1 - share) / of + weight / (4 * of)) ** 0.5
    # Exactly 0 and 100 at the ends, where floating point would round to slightly more or less.
    return (0.0 if n == 0 else 100 * (centre - half), 100.0 if n == of else 100 * (centre + half))


def exact(n: int, of: int, level: float = LEVEL) -> Interval:
    """Return the interval of Clopper and Pearson (1934), in percent; its coverage is at least `level`."""
    from scipy.special import betaincinv  # imported late: takes 0.25 s, and only a differential needs it

    tail = (1 - level) / 2
    low = 0.0 if n == 0 else 100 * float(betaincinv(n, of - n + 1, tail))
    high = 100.0 if n == of else 100 * float(betaincinv(n + 1, of - n, 1 - tail))
    return low, high


def fingerprint(model_sha256: str, images: Sequence[str]) -> str:
    """Return a hash of the model and the images, independent of their order. images: their SHA-256."""
    return hashlib.sha256("\n".join([model_sha256, *sorted(images)]).encode()).hexdigest()
