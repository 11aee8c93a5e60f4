"""Quantiles of the beta and χ² distributions, so that SciPy is needed for tests and training only."""

from __future__ import annotations

import math
from collections.abc import Callable

_ROOT = 1e-12  # relative precision of a quantile
_FRACTION = 1e-15  # and of the continued fraction
_TINY = 1e-300  # in place of a zero that would be divided by
_MOST_DEGREES = 1000  # beyond, a sum would underflow


def beta_quantile(share: float, a: float, b: float) -> float:
    """Return the x for which I_x(a, b), the regularised incomplete beta function, is `share`.

    share: between 0 and 1, both excluded; a, b: at least 1, in sum at most a few million.
    """
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)

    def density(x: float) -> float:
        return math.exp(scale + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x))

    def below(x: float) -> float:
        front = density(x) * x * (1 - x)
        if x < (a + 1) / (a + b + 2):
            return front * _beta_fraction(x, a, b) / a
        return 1 - front * _beta_fraction(1 - x, b, a) / b

    return _solve(lambda x: below(x) - share, density, low=0.0, high=1.0, start=a / (a + b))


def chi_square_quantile(tail: float, degrees: int) -> float:
    """Return the x that a χ² variable exceeds with probability `tail`. degrees: of freedom, 1 to 1000.

    Raise ValueError for other degrees.
    """
    if not 1 <= degrees <= _MOST_DEGREES:
        raise ValueError(f"{degrees} degrees of freedom: expected 1 to {_MOST_DEGREES}")

    def density(x: float) -> float:
        half = degrees / 2
        return math.exp((half - 1) * math.log(x / 2) - x / 2 - math.lgamma(half)) / 2

    high = degrees + 1.0
    while _chi_square_tail(high, degrees) > tail:
        high *= 2
    return _solve(lambda x: tail - _chi_square_tail(x, degrees), density, low=0.0, high=high, start=high / 2)


def _solve(
    f: Callable[[float], float], slope: Callable[[float], float], *, low: float, high: float, start: float
) -> float:
    """Return the root of a growing function between low and high: Newton's method, kept in by bisection."""
    x = start
    while True:
        value = f(x)
        if value < 0:
            low = x
        else:
            high = x
        steepness = slope(x)
        following = x - value / steepness if steepness else low
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - x) <= _ROOT * following or not low < following < high:
            return following
        x = following


def _beta_fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method.

    It takes about √(a + b) steps. Raise ArithmeticError if it does not converge.
    """
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 1000 + 10 * math.isqrt(int(a + b))):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for part in (even, odd):
            d = 1 / _nonzero(1 + part * d)
            c = _nonzero(1 + part / c)
            value *= c * d
        if abs(c * d - 1) < _FRACTION:
            return value
    raise ArithmeticError(f"the incomplete beta function of {x}, {a}, {b} does not converge")


def _nonzero(number: float) -> float:
    return number if abs(number) > _TINY else _TINY


def _chi_square_tail(x: float, degrees: int) -> float:
    """Return the probability that a χ² variable exceeds x: a finite sum for whole degrees (DLMF 8.4)."""
    half = x / 2
    power = degrees % 2 / 2
    total = math.erfc(math.sqrt(half)) if power else 0.0
    term = math.exp(-half) * half**power / math.gamma(power + 1)
    while power < degrees / 2:
        total += term
        power += 1
        term *= half / power
    return total
