from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.evaluation.report import Report, evaluate

eighths = st.lists(st.integers(0, 8), min_size=2, max_size=2).map(
    lambda cuts: [min(cuts) / 8, abs(cuts[0] - cuts[1]) / 8, 1 - max(cuts) / 8]
)
cases = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), eighths, st.sampled_from("stuv")), min_size=1, max_size=30
)
Case = list[tuple[int, int, list[float], str]]


def report_on_case(case: Case) -> Report:
    labels, predictions, probabilities, groups = (list(column) for column in zip(*case, strict=True))
    return evaluate(labels, predictions, probabilities, names="abc", groups=groups, resamples=20)


def flat(value: Any) -> list[Any]:
    """Return all leaves of a report, in order."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return [value]
    return [leaf for item in value for leaf in flat(item)]


@settings(deadline=None)
@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(case: Case, random: Any) -> None:
    shuffled = list(case)
    random.shuffle(shuffled)
    assert flat(asdict(report_on_case(case))) == pytest.approx(flat(asdict(report_on_case(shuffled))))


@settings(deadline=None)
@given(cases)
def test_the_report_agrees_with_its_own_confusion_matrix(case: Case) -> None:
    report = report_on_case(case)
    matrix = np.array(report.confusion_matrix)
    assert matrix.sum() == report.n == len(case)
    assert report.accuracy == pytest.approx(np.trace(matrix) / matrix.sum())
    assert [row.support for row in report.per_class.values()] == matrix.sum(axis=1).tolist()
    assert report.weighted_avg.recall == pytest.approx(report.accuracy)
    assert report.rmse**2 == pytest.approx(report.mse)


@settings(deadline=None)
@given(cases)
def test_every_score_is_none_or_finite_and_in_its_range(case: Case) -> None:
    report = report_on_case(case)
    json.dumps(asdict(report), allow_nan=False)
    shares = [report.accuracy, report.balanced_accuracy, report.ece, report.roc_auc_ovr]
    shares += [score for row in report.per_class.values() for score in (row.precision, row.recall, row.f1)]
    assert all(score is None or 0 <= score <= 1 for score in shares)
    assert report.brier is not None
    assert 0 <= report.brier <= 2
    for score in (report.cohen_kappa, report.matthews_corrcoef):
        assert score is None or -1 - 1e-9 <= score <= 1 + 1e-9


@settings(deadline=None)
@given(cases)
def test_perfect_predictions_score_one(case: Case) -> None:
    labels = [label for label, *_ in case]
    report = evaluate(labels, labels, np.eye(3)[labels], names="abc", resamples=20)
    assert (report.accuracy, report.balanced_accuracy, report.macro_avg.f1, report.mse) == (1, 1, 1, 0)
    assert report.cohen_kappa in (None, pytest.approx(1))
    assert (report.brier, report.ece) == (0, 0)
