"""The quantiles of the beta and χ² distributions, compared with SciPy's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaincinv, chdtri

from app.evaluation.distributions import beta_quantile, chi_square_quantile

shapes = st.integers(1, 1_000_000) | st.floats(1, 50)
shares = st.floats(1e-6, 1 - 1e-6)


@given(shares, shapes, shapes)
def test_beta_quantiles_are_those_of_scipy(share: float, a: float, b: float) -> None:
    assert beta_quantile(share, a, b) == pytest.approx(betaincinv(a, b, share), rel=1e-7)


@given(st.floats(1e-9, 0.999), st.integers(1, 1000))
def test_chi_square_quantiles_are_those_of_scipy(tail: float, degrees: int) -> None:
    assert chi_square_quantile(tail, degrees) == pytest.approx(chdtri(degrees, tail), rel=1e-9)


def test_known_quantiles() -> None:
    assert beta_quantile(0.3, 1, 1) == pytest.approx(0.3)  # uniform
    assert beta_quantile(0.5, 7, 7) == pytest.approx(0.5)  # symmetric
    assert chi_square_quantile(0.05, 1) == pytest.approx(1.959964**2, rel=1e-6)
    assert chi_square_quantile(0.05, 10) == pytest.approx(18.307, abs=5e-4)  # of any table


@pytest.mark.parametrize("degrees", [0, 1001])
def test_other_degrees_of_freedom_are_refused(degrees: int) -> None:
    with pytest.raises(ValueError, match=f"{degrees} degrees of freedom"):
        chi_square_quantile(0.5, degrees)
