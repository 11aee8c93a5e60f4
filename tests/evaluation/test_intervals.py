from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from app.evaluation.intervals import (
    Intervals,
    Ints,
    Tables,
    bootstrap,
    confusion_tables,
    resample,
    true_classes,
)


def tables_of(pairs: list[tuple[int, int]], units: list[int] | None = None, classes: int = 3) -> Tables:
    labels, predictions = np.array(pairs).T
    return confusion_tables(np.array(units or range(len(pairs))), labels, predictions, classes)


def intervals_of(tables: Tables, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Intervals:
    return bootstrap(tables, unit="image", level=level, resamples=resamples, seed=seed)


def test_each_unit_has_its_own_confusion_matrix() -> None:
    tables = tables_of([(0, 0), (0, 1), (1, 1), (0, 1)], units=[0, 1, 0, 1], classes=2)
    assert dense(tables).tolist() == [[[1, 0], [0, 1]], [[0, 2], [0, 0]]]


def dense(tables: Tables) -> Ints:
    table = np.zeros((len(tables), tables.shape[1] * tables.shape[2]), np.int64)
    table[tables.units, tables.cells] = tables.counts
    return table.reshape(tables.shape)


@pytest.mark.parametrize("classes", [2, 4, 32])
def test_sums_and_selections_are_those_of_an_array(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(classes, size=(2, 300))
    tables = confusion_tables(np.arange(300) % 40, labels, predictions, classes)
    for axis in range(3):
        assert (tables.sum(axis) == dense(tables).sum(axis)).all()
    some = np.array([7, 3, 39])
    assert (dense(tables.select(some)) == dense(tables)[some]).all()


@pytest.mark.parametrize("groups", [30, 300, 3000])
def test_resamples_are_those_of_whole_tables(groups: int) -> None:
    """As drawn before tables were sparse: the intervals of reports made earlier stay the same."""
    rng = np.random.default_rng(1)
    labels = rng.integers(4, size=3000)
    predictions = np.where(rng.random(3000) < 0.8, labels, rng.integers(4, size=3000))
    tables = confusion_tables(np.arange(3000) % groups, labels, predictions, 4)
    again, table, strata = np.random.default_rng(5), dense(tables), true_classes(tables)
    expected = np.zeros((20, 16), np.int64)
    for stratum in np.unique(strata):
        rows = table[strata == stratum].reshape(-1, 16)
        kinds, counts = np.unique(rows, axis=0, return_counts=True)
        expected += again.multinomial(len(rows), counts / len(rows), size=20) @ kinds
    assert (resample(tables, 20, 5).reshape(20, 16) == expected).all()


@pytest.mark.parametrize("per_group", [1, 3, 100])
def test_many_classes_and_groups_are_resampled_whole(per_group: int) -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat(rng.integers(32, size=6000 // per_group), per_group)
    predictions = np.where(rng.random(6000) < 0.5, labels, rng.integers(32, size=6000))
    tables = confusion_tables(np.arange(6000) // per_group, labels, predictions, 32)
    drawn = resample(tables, 300, 0)
    assert (drawn.sum(axis=2) == tables.sum(axis=0).sum(axis=1)).all()  # every unit has as many images
    spread = drawn.mean(axis=0) - tables.sum(axis=0)
    assert abs(spread).max() < 5 * np.sqrt(tables.sum(axis=0).max() * per_group / 300)


def test_a_unit_has_its_majority_class_and_the_lowest_in_a_tie() -> None:
    pairs = [(2, 0), (2, 0), (0, 0), (1, 0), (2, 0)]
    assert true_classes(tables_of(pairs, units=[0, 0, 0, 1, 1])).tolist() == [2, 1]


def test_an_image_bootstrap_agrees_with_one_written_as_a_loop() -> None:
    labels = np.repeat([0, 1, 2], [60, 40, 20])
    predictions = np.where(np.arange(120) % 5, labels, (labels + 1) % 3)
    rng = np.random.default_rng(1)
    accuracy, macro_f1 = [], []
    for _ in range(2000):
        images = [np.flatnonzero(labels == index) for index in range(3)]
        drawn = np.concatenate([rng.choice(each, len(each)) for each in images])
        accuracy.append((labels[drawn] == predictions[drawn]).mean())
        macro_f1.append(_macro_f1(labels[drawn], predictions[drawn]))
    intervals = intervals_of(confusion_tables(np.arange(120), labels, predictions, 3))
    assert intervals.accuracy == pytest.approx(np.quantile(accuracy, [0.025, 0.975]), abs=0.012)
    assert intervals.macro_f1 == pytest.approx(np.quantile(macro_f1, [0.025, 0.975]), abs=0.012)


def _macro_f1(labels: Ints, predictions: Ints) -> float:
    true, called = np.bincount(labels, minlength=3), np.bincount(predictions, minlength=3)
    return float(np.mean(2 * np.bincount(labels[labels == predictions], minlength=3) / (true + called)))


def test_an_image_bootstrap_has_the_width_of_the_normal_interval() -> None:
    pairs = [(0, 0)] * 900 + [(0, 1)] * 100 + [(1, 1)] * 900 + [(1, 0)] * 100
    low, high = intervals_of(tables_of(pairs)).accuracy
    half = 1.96 * (0.9 * 0.1 / 2000) ** 0.5
    assert (low, high) == pytest.approx((0.9 - half, 0.9 + half), abs=0.002)


def test_images_that_err_together_widen_the_interval() -> None:
    pairs = ([(0, 0)] * 9 + [(0, 1)]) * 20 + ([(1, 1)] * 9 + [(1, 0)]) * 20
    clumped = sorted(pairs)  # the errors of a class fall into the same few sources
    units = [image // 10 for image in range(len(pairs))]
    spread, together = intervals_of(tables_of(pairs, units)), intervals_of(tables_of(clumped, units))
    assert spread.accuracy == (0.9, 0.9)
    assert together.accuracy[1] - together.accuracy[0] > 0.1


def test_each_class_keeps_its_number_of_units() -> None:
    # Class 0 is always right and class 1 always wrong: only the mixture could vary, and it may not.
    assert intervals_of(tables_of([(0, 0)] * 7 + [(1, 0)] * 3)).accuracy == (0.7, 0.7)


def test_a_class_that_a_resample_loses_is_left_out_of_its_macro_f1() -> None:
    # Class 2 occurs only as the minority of one source, so that some resamples do not have it.
    tables = tables_of([(0, 0), (0, 0), (2, 0), (0, 0), (1, 1)], units=[0, 0, 0, 1, 2])
    assert intervals_of(tables).macro_f1[1] == 1.0


def test_perfect_predictions_have_a_point_for_an_interval() -> None:
    intervals = intervals_of(tables_of([(0, 0), (1, 1), (2, 2)] * 5))
    assert intervals.accuracy == intervals.macro_f1 == (1.0, 1.0)


def test_a_higher_level_is_wider() -> None:
    tables = tables_of([(0, 0), (0, 1), (1, 1), (1, 1)] * 20)
    narrow, wide = intervals_of(tables, level=0.5).accuracy, intervals_of(tables, level=0.99).accuracy
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_seed_alone_decides_the_draw() -> None:
    tables = tables_of([(0, 0), (0, 1), (1, 1), (2, 1), (2, 2)] * 9)
    assert intervals_of(tables) == intervals_of(tables)
    assert intervals_of(tables, seed=1) != intervals_of(tables, seed=2)


pairs_of_classes = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)


@settings(deadline=None)
@given(pairs_of_classes, st.randoms(use_true_random=False))
def test_the_order_of_units_does_not_matter(pairs: list[tuple[int, int]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    ordered, reordered = (intervals_of(tables_of(each), resamples=50) for each in (pairs, shuffled))
    assert ordered == reordered


@settings(deadline=None)
@given(pairs_of_classes)
def test_intervals_are_ordered_and_within_0_and_1(pairs: list[tuple[int, int]]) -> None:
    intervals = intervals_of(tables_of(pairs), resamples=50)
    for low, high in (intervals.accuracy, intervals.macro_f1):
        assert 0 <= low <= high <= 1


def test_a_point_interval_of_macro_f1_is_scikit_learns() -> None:
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (2, 2)]
    units = [0, 0, 0, 1, 2]
    expected = f1_score(*zip(*pairs, strict=True), average="macro")
    assert intervals_of(tables_of(pairs, units)).macro_f1 == pytest.approx((expected, expected))
