from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from app.evaluation.review_thresholds import POINTS, Cells, Thresholds, curve, propose


def cells(n: int = 2000, *, seed: int = 0) -> Cells:
    """Return cells whose confidence is the probability of being right; a tenth has a high OOD score."""
    draw = np.random.default_rng(seed)
    confidence, strange = draw.uniform(0.4, 1, n), draw.random(n) < 0.1
    right = draw.random(n) < np.where(strange, 0.3, confidence)
    return Cells(confidence, np.where(strange, 3.0, 1.0), right, np.ones(n, bool), np.ones(n))


def test_the_thresholds_keep_as_many_cells_as_the_target_allows() -> None:
    found = propose(cells(), 0.9)
    assert found is not None
    assert found.ood_score < 3  # the strange cells are left out
    kept = cells().keep(found)
    assert (cells().right_share(kept) or 0) >= 0.9
    more = Thresholds(found.confidence - 0.02, found.ood_score)
    assert (cells().right_share(cells().keep(more)) or 1) < 0.9
    assert 0.2 < cells().share(kept) < 0.5


def test_no_thresholds_are_proposed_where_the_surest_cells_are_wrong() -> None:
    sure = cells()
    wrong = Cells(sure.confidence, sure.ood_score, sure.confidence < 0.9, sure.allowed, sure.weights)
    assert (
        propose(
            Cells(wrong.confidence, wrong.ood_score, wrong.right & False, wrong.allowed, wrong.weights), 0.5
        )
        is None
    )


def test_cells_of_equal_confidence_are_kept_or_reviewed_together() -> None:
    one = np.ones(4)
    same = Cells(0.9 * one, one, np.array([True, True, True, False]), np.ones(4, bool), one)
    assert propose(same, 0.8) is None
    assert propose(same, 0.75) == Thresholds(0.9, 1.0)


def test_cells_that_another_rule_sends_to_review_are_not_kept() -> None:
    some = cells()
    barred = Cells(some.confidence, some.ood_score, some.right, some.confidence > 0.7, some.weights)
    assert not barred.keep(Thresholds(0.0, 9.0))[some.confidence <= 0.7].any()
    assert max(point.kept for point in curve(barred, 9.0)) == pytest.approx(barred.allowed.mean())


def test_weights_count() -> None:
    one = np.ones(2)
    pair = Cells(np.array([0.9, 0.8]), one, np.array([True, False]), np.ones(2, bool), np.array([3.0, 1.0]))
    assert [(point.kept, point.right) for point in curve(pair, 1.0)] == [(0.75, 1.0), (1.0, 0.75)]


def test_a_curve_falls_in_confidence_and_is_short() -> None:
    points = curve(cells(), 9.0)
    assert len(points) == POINTS
    assert all(a.confidence > b.confidence and a.kept < b.kept for a, b in pairwise(points))
    assert points[-1].kept == 1


def test_a_curve_of_no_cells_is_empty() -> None:
    assert curve(cells(), 0.0) == []
