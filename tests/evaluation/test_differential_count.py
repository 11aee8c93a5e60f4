"""Differential counts and their confidence intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from app.engine.bundle import CLASSES
from app.evaluation.cell_types import Role, role_of
from app.evaluation.differential_count import beside, count, exact, fingerprint, wilson
from tests.own_labels import THIRTY_TWO

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
    assert sum(of_class.value or 0 for of_class in counts.values()) == pytest.approx(100)


@given(st.lists(st.sampled_from(THIRTY_TWO), min_size=1))
def test_percentages_are_of_the_leukocytes(labels: list[str]) -> None:
    counts = count(labels, THIRTY_TWO)
    leukocytes = [label for label in labels if role_of(label) is Role.LEUKOCYTE]
    assert sum(one.n for one in counts.values()) == len(labels)
    assert {one.of for one in counts.values()} == {len(leukocytes)}
    if not leukocytes:
        assert {one.value for one in counts.values()} == {None}
        return
    shares = [one.value or 0 for label, one in counts.items() if role_of(label) is Role.LEUKOCYTE]
    assert sum(shares) == pytest.approx(100)
    for one in counts.values():
        for interval in (one.wilson, one.exact):
            assert interval is not None
            assert one.value is not None
            assert interval[0] - 1e-9 <= one.value <= interval[1] + 1e-9


def test_the_interval_of_cells_per_100_leukocytes_is_that_of_a_ratio() -> None:
    # 10 erythroblasts beside 100 leukocytes: 10 of 110, as odds.
    low, high = exact(10, 110)
    found = beside(10, 100)
    assert found.value == 10
    assert found.exact == pytest.approx((100 * low / (100 - low), 100 * high / (100 - high)))
    assert beside(0, 100).wilson == pytest.approx((0, 3.85), abs=0.01)
    assert beside(300, 100).value == 300


def test_a_fingerprint_depends_on_the_images_and_the_model_but_not_on_the_order() -> None:
    pair = fingerprint("m", ["a", "b"])
    assert pair == fingerprint("m", ["b", "a"])
    others = {fingerprint("n", ["a", "b"]), fingerprint("m", ["a"]), fingerprint("m", ["a", "b", "b"])}
    assert len({pair, *others}) == 4
