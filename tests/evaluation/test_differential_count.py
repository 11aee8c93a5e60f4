"""Differential counts and their confidence intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from app.engine.bundle import CLASSES
from app.evaluation.differential_count import count, exact, fingerprint, wilson

numbers = st.integers(1, 10_000).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of)))


@given(numbers)
def test_intervals_are_those_of_scipy(cells: tuple[int, int]) -> None:
    n, of = cells
    for ours, method in ((wilson, "wilson"), (exact, "exact")):
        theirs = binomtest(n, of).proportion_ci(0.95, method)
        assert ours(n, of) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=1e-6)


@given(numbers)
def test_an_interval_holds_the_percentage_and_stays_within_0_and_100(cells: tuple[int, int]) -> None:
    n, of = cells
    for interval in (wilson, exact):
        low, high = interval(n, of)
        assert 0 <= low <= 100 * n / of <= high <= 100


def test_intervals_of_rümke_are_as_published() -> None:
    # Rümke 1985, the table that laboratories know: of 100 cells, 5 % may be 1.6 to 11.3 %.
    assert exact(5, 100) == pytest.approx((1.6, 11.3), abs=0.05)
    assert exact(50, 100) == pytest.approx((39.8, 60.2), abs=0.05)
    assert exact(0, 100) == pytest.approx((0, 3.6), abs=0.05)


@given(st.lists(st.sampled_from(CLASSES), min_size=1))
def test_counts_add_up_and_so_do_percentages(labels: list[str]) -> None:
    counts = count(labels, CLASSES)
    assert list(counts) == list(CLASSES)
    assert sum(of_class.n for of_class in counts.values()) == len(labels)
    assert sum(of_class.percent for of_class in counts.values()) == pytest.approx(100)


def test_a_fingerprint_depends_on_the_images_and_the_model_but_not_on_the_order() -> None:
    pair = fingerprint("m", ["a", "b"])
    assert pair == fingerprint("m", ["b", "a"])
    others = {fingerprint("n", ["a", "b"]), fingerprint("m", ["a"]), fingerprint("m", ["a", "b", "b"])}
    assert len({pair, *others}) == 4
