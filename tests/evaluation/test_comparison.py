from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from app.evaluation.comparison import NOT_INDEPENDENT, Change, Comparison, compare, mcnemar
from app.evaluation.review_thresholds import Rules, Thresholds
from app.evaluation.verification import Answers

NAMES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
LABELS = np.arange(400) % 4
LIMITS = Rules(Thresholds(0.5, 9.0))


def answers(right: np.ndarray, confidence: float = 0.9, labels: np.ndarray = LABELS) -> Answers:
    """Return answers that are right where the flag is set, and else name the next class."""
    probabilities = np.full((len(labels), 4), (1 - confidence) / 3)
    probabilities[np.arange(len(labels)), np.where(right, labels, (labels + 1) % 4)] = confidence
    return Answers(probabilities, np.ones(len(labels)), np.zeros(len(labels), bool))


def rights(share: float, seed: int) -> np.ndarray:
    flags: np.ndarray = np.random.default_rng(seed).random(len(LABELS)) < share
    return flags


def interval_of(change: Change) -> tuple[float, float]:
    assert change.interval is not None
    return change.interval


def compared(first: np.ndarray, second: np.ndarray, groups: list[int] | None = None) -> Comparison:
    return compare(LABELS, (answers(first), answers(second)), (LIMITS, LIMITS), names=NAMES, groups=groups)


@pytest.mark.parametrize(
    "numbers", [(0, 0), (0, 1), (3, 3), (1, 9), (9, 1), (40, 61), (0, 2000), (900, 1100)]
)
def test_mcnemar_is_the_exact_test_of_a_fair_coin(numbers: tuple[int, int]) -> None:
    expected = binomtest(numbers[0], sum(numbers)).pvalue if sum(numbers) else 1.0
    assert mcnemar(*numbers) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_a_model_compared_with_itself_does_not_differ() -> None:
    found = compared(rights(0.8, 0), rights(0.8, 0))
    assert (found.accuracy.difference, found.accuracy.interval, found.p_value) == (0, (0, 0), 1)
    assert (found.rights.only_first, found.rights.only_second) == (0, 0)
    assert found.first == found.second


def test_a_better_model_is_told_from_chance() -> None:
    first, second = rights(0.7, 0), rights(0.9, 1)
    found = compared(first, second)
    assert found.accuracy.difference == pytest.approx(second.mean() - first.mean())
    assert interval_of(found.accuracy)[0] > 0
    assert found.p_value < 1e-6
    total = found.rights
    assert (total.only_first, total.only_second) == ((first & ~second).sum(), (second & ~first).sum())
    assert sum((total.both, total.only_first, total.only_second, total.neither)) == 400
    mean = np.mean([second[c == LABELS].mean() - first[c == LABELS].mean() for c in range(4)])
    assert found.balanced_accuracy.difference == pytest.approx(mean)


def test_pairs_narrow_the_interval_of_the_difference() -> None:
    first = rights(0.5, 0)
    second = first | (rights(0.1, 1))  # right wherever the first is
    low, high = interval_of(compared(first, second).accuracy)
    assert low > 0
    assert high - low < 0.08  # two independent samples: 0.14


def test_each_class_has_its_recalls_and_absent_ones_none() -> None:
    labels = LABELS[LABELS != 2]
    worse = np.where(labels == 1, np.arange(len(labels)) % 2 == 0, True)
    both = (answers(np.ones(len(labels), bool), labels=labels), answers(worse, labels=labels))
    found = compare(labels, both, (LIMITS, LIMITS), names=NAMES)
    assert found.by_class["monocyte"].recall is None
    assert found.by_class["eosinophil"].recall is not None
    changed = found.by_class["lymphocyte"].recall
    assert changed is not None
    assert changed.first == 1
    assert changed.second == pytest.approx(0.5, abs=0.05)
    assert interval_of(changed)[1] < 0
    assert found.balanced_accuracy.first == 1
    assert any("no cells of monocyte" in warning for warning in found.warnings)


def test_groups_widen_the_interval_and_the_test_says_what_it_takes_for_granted() -> None:
    first, second = rights(0.7, 0), rights(0.7, 0)
    slides = (np.arange(400) // 40).tolist()
    second = np.where(np.isin(slides, (2, 3, 7)), True, second)  # better on three whole slides
    by_cell, by_slide = compared(first, second), compared(first, second, groups=slides)
    width = [high - low for low, high in map(interval_of, (by_cell.accuracy, by_slide.accuracy))]
    assert width[1] > 1.5 * width[0]
    assert (by_slide.groups, by_slide.unit, by_cell.unit) == (10, "group", "image")
    assert NOT_INDEPENDENT in by_slide.warnings
    alone = compared(first, second, groups=list(range(400)))
    assert NOT_INDEPENDENT not in alone.warnings


def test_cells_of_one_slide_have_no_interval() -> None:
    found = compared(rights(0.7, 0), rights(0.9, 1), groups=[0] * 400)
    assert found.accuracy.interval is found.balanced_accuracy.interval is None
    recall = found.by_class["monocyte"].recall
    assert recall is not None
    assert recall.interval is None
    assert "All cells are of one patient or slide: nothing is known about others." in found.warnings


def test_each_model_is_reviewed_by_its_own_thresholds() -> None:
    right = rights(0.9, 0)
    found = compare(
        LABELS, (answers(right), answers(right, 0.6)), (LIMITS, Rules(Thresholds(0.7, 9.0))), names=NAMES
    )
    assert found.first.review_share == 0
    assert found.first.right_when_kept == pytest.approx(right.mean())
    assert (found.second.review_share, found.second.right_when_kept) == (1, None)
