"""The differential count of a specimen's cells, with confidence intervals."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from app.evaluation.cell_types import Role, role_of
from app.evaluation.distributions import beta_quantile

LEVEL = 0.95  # of the confidence intervals

Interval = tuple[float, float]  # percent, or cells per 100 leukocytes


@dataclass(frozen=True)
class Count:
    """n: cells of one class; of: the leukocytes. value: n per 100 of them, and its intervals.

    They are None without leukocytes.
    """

    n: int
    of: int
    value: float | None
    wilson: Interval | None
    exact: Interval | None


def count(labels: Sequence[str], names: Sequence[str]) -> dict[str, Count]:
    """Return the count of each class in `names` among `labels`, the predicted classes.

    Percentages are of the leukocytes: what is no leukocyte is in none, and is counted beside 100 of them.
    """
    found = Counter(labels)
    roles = {name: role_of(name) for name in names}
    leukocytes = sum(found[name] for name, role in roles.items() if role is Role.LEUKOCYTE)
    return {
        name: (describe if role is Role.LEUKOCYTE else beside)(found[name], leukocytes)
        for name, role in roles.items()
    }


def describe(n: int, of: int) -> Count:
    """Return the count of n cells among `of`."""
    if not of:
        return Count(n, of, None, None, None)
    return Count(n, of, 100 * n / of, wilson(n, of), exact(n, of))


def beside(n: int, of: int) -> Count:
    """Return the count of n cells beside `of` others.

    The intervals are those of n among n + of, as odds: given the sum of two Poisson counts, each is binomial.
    """
    if not of:
        return Count(n, of, None, None, None)
    return Count(n, of, 100 * n / of, _odds(wilson(n, n + of)), _odds(exact(n, n + of)))


def _odds(interval: Interval) -> Interval:
    low, high = (100 * bound / (100 - bound) for bound in interval)
    return low, high


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
    tail = (1 - level) / 2
    low = 0.0 if n == 0 else 100 * beta_quantile(tail, n, of - n + 1)
    high = 100.0 if n == of else 100 * beta_quantile(1 - tail, n + 1, of - n)
    return low, high


def fingerprint(model_sha256: str, images: Sequence[str], review: Sequence[str] = ()) -> str:
    """Return a hash of the model and the images, independent of their order. images: their SHA-256.

    review: lines about the review, if there was one.
    """
    return hashlib.sha256("\n".join([model_sha256, *sorted(images), *review]).encode()).hexdigest()
