from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from app.errors import BadLabels
from app.evaluation.report import Average, ClassScores, Indices, Report, evaluate
from tests import paper
from tests.evaluation.cases import random_case

ABC = ("a", "b", "c")
SCORES = ["accuracy", "per_class", "macro_avg", "weighted_avg", "mse", "rmse", "confusion_matrix"]
SCORES += ["balanced_accuracy", "cohen_kappa", "matthews_corrcoef", "log_loss", "brier", "ece", "roc_auc_ovr"]


def report_on(
    labels: Indices,
    predictions: Indices | None,
    probabilities: Any = None,
    names: Sequence[str] = ABC,
    groups: Sequence[str] | None = None,
) -> Report:
    """Evaluate with few resamples: intervals are tested in test_intervals.py."""
    return evaluate(labels, predictions, probabilities, names=names, groups=groups, resamples=20)


# The paper


def test_the_papers_table_2_is_reproduced_to_the_last_printed_digit() -> None:
    report = evaluate(*paper.labels_and_predictions(), names=paper.LABELS)
    rows: dict[str, Average | ClassScores] = {**report.per_class}
    rows |= {"macro": report.macro_avg, "weighted": report.weighted_avg}
    printed = {
        name: (f"{row.precision:.4f}", f"{row.recall:.4f}", f"{row.f1:.4f}", row.support)
        for name, row in rows.items()
    }
    assert printed == {**paper.PER_CLASS, "macro": paper.MACRO, "weighted": paper.WEIGHTED}
    assert f"{report.accuracy:.4f}" == paper.ACCURACY
    assert (f"{report.mse:.4f}", f"{report.rmse:.4f}") == (paper.MSE, paper.RMSE)


def test_the_papers_matrix_has_the_papers_stated_confusions() -> None:
    report = evaluate(*paper.labels_and_predictions(), names=paper.LABELS)
    assert report.confusion_matrix == paper.CONFUSION
    assert (report.confusion_matrix[3][0], report.confusion_matrix[2][0]) == (90, 65)


# Each score


def test_class_scores_are_those_worked_out_by_hand() -> None:
    report = report_on([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2])
    assert asdict(report.per_class["a"]) == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "specificity": 2 / 3, "support": 3}
    )
    assert asdict(report.per_class["b"]) == pytest.approx(
        {"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "specificity": 3 / 4, "support": 2}
    )
    assert report.macro_avg.recall == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert report.weighted_avg.recall == pytest.approx(4 / 6)
    assert report.confusion_matrix == ((2, 1, 0), (1, 1, 0), (0, 0, 1))
    assert (report.mse, report.rmse) == pytest.approx((2 / 6, math.sqrt(2 / 6)))


def test_squared_error_counts_how_far_apart_the_class_indices_are() -> None:
    assert report_on([0, 0, 1], [2, 0, 0]).mse == pytest.approx((4 + 0 + 1) / 3)


def test_hard_scores_are_scikit_learns() -> None:
    labels, probabilities = random_case()
    predictions = probabilities.argmax(axis=1)
    report = report_on(labels, predictions, names="abcd")
    rows: list[Average | ClassScores] = [*report.per_class.values(), report.macro_avg, report.weighted_avg]
    expected = metrics.precision_recall_fscore_support(labels, predictions)
    for position, field in enumerate(("precision", "recall", "f1", "support")):
        values = [getattr(row, field) for row in rows[:4]]
        assert values == pytest.approx(expected[position].tolist())
    for row, average in zip(rows[4:], ("macro", "weighted"), strict=True):
        wanted = metrics.precision_recall_fscore_support(labels, predictions, average=average)[:3]
        assert (row.precision, row.recall, row.f1) == pytest.approx(wanted)
    assert report.accuracy == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert report.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, predictions))
    assert report.mse == pytest.approx(metrics.mean_squared_error(labels, predictions))
    assert np.array_equal(report.confusion_matrix, metrics.confusion_matrix(labels, predictions))
    specificity = [metrics.recall_score(labels != c, predictions != c) for c in range(4)]
    assert [row.specificity for row in report.per_class.values()] == pytest.approx(specificity)


def test_scores_of_probabilities_are_those_worked_out_by_hand() -> None:
    report = report_on([0, 1, 2], None, [[0.6, 0.35, 0.05], [0.5, 0.3, 0.2], [0.0, 0.2, 0.8]])
    assert report.log_loss == pytest.approx(-(math.log(0.6) + math.log(0.3) + math.log(0.8)) / 3)
    assert report.brier == pytest.approx((0.285 + 0.78 + 0.08) / 3)
    assert report.ece == pytest.approx((0.4 + 0.5 + 0.2) / 3)
    assert report.roc_auc_ovr == pytest.approx((1 + 0.5 + 1) / 3)


# What is not defined is None


def test_the_precision_of_a_class_never_predicted_is_none_and_left_out_of_averages() -> None:
    report = report_on([0, 0, 1, 2], [0, 0, 0, 2])
    assert asdict(report.per_class["b"]) == {
        "precision": None, "recall": 0.0, "f1": 0.0, "specificity": 1.0, "support": 1
    }  # fmt: skip
    assert report.macro_avg.precision == pytest.approx((2 / 3 + 1) / 2)
    assert report.weighted_avg.precision == pytest.approx((2 * 2 / 3 + 1 * 1) / 3)
    assert report.macro_avg.f1 == pytest.approx((0.8 + 0 + 1) / 3)
    assert (report.macro_avg.support, report.weighted_avg.support) == (4, 4)


def test_recall_and_f1_of_a_class_without_support_are_none() -> None:
    report = report_on([0, 0, 1], [0, 2, 1])
    assert asdict(report.per_class["c"]) == {
        "precision": 0.0, "recall": None, "f1": None, "specificity": 2 / 3, "support": 0
    }  # fmt: skip
    assert report.balanced_accuracy == report.macro_avg.recall == pytest.approx((1 / 2 + 1) / 2)
    assert report.macro_avg.precision == pytest.approx((1 + 1 + 0) / 3)
    assert report.weighted_avg.precision == 1.0


def test_an_average_defined_for_no_class_is_none() -> None:
    report = report_on([0, 0], [1, 1], names="ab")
    assert (report.macro_avg.precision, report.weighted_avg.precision) == (0.0, None)


def test_specificity_without_other_classes_is_none() -> None:
    report = report_on([0, 0], [0, 1], names="ab")
    assert report.per_class["a"].specificity is None
    assert report.per_class["b"].specificity == 0.5


def test_scores_of_probabilities_are_none_without_them() -> None:
    report = report_on([0, 1, 2], [0, 1, 1])
    assert (report.log_loss, report.brier, report.ece, report.roc_auc_ovr) == (None,) * 4


# Predictions and probabilities


def test_predictions_default_to_the_most_probable_class() -> None:
    labels, probabilities = random_case()
    assumed = report_on(labels, None, probabilities, names="abcd")
    assert assumed == report_on(labels, probabilities.argmax(axis=1), probabilities, names="abcd")


def test_given_predictions_win_over_probabilities_in_hard_scores_only() -> None:
    rows = [[0.9, 0.1], [0.2, 0.8]]
    report = report_on([0, 1], [1, 0], rows, names="ab")
    assert report.accuracy == 0.0
    assert (report.roc_auc_ovr, report.ece) == pytest.approx((1.0, 0.15))


def test_rounded_probabilities_are_rescaled() -> None:
    rounded = report_on([0, 1], None, [[0.6003, 0.4002], [0.25, 0.75]], names="ab")
    exact = report_on([0, 1], None, [[0.6, 0.4], [0.25, 0.75]], names="ab")
    assert rounded.log_loss == pytest.approx(exact.log_loss, abs=1e-3)


# Sources


def test_without_groups_intervals_are_of_images() -> None:
    report = report_on([0, 1], [0, 1])
    assert (report.groups, report.confidence_intervals.unit) == (None, "image")


def test_a_source_without_probabilities_has_its_majority_vote() -> None:
    labels, predictions = [0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 1]
    report = report_on(labels, predictions, groups=["s", "s", "s", "t", "t", "t"])
    assert report.groups is not None
    assert asdict(report.groups) == {"n": 2, "accuracy": 0.5, "correct": 1}
    assert report.confidence_intervals.unit == "group"


def test_a_source_with_probabilities_has_the_class_of_their_mean() -> None:
    rows = [[0.4, 0.6], [0.4, 0.6], [0.9, 0.1]]  # two votes for b, yet a is likelier over all
    report = report_on([0, 0, 0], None, rows, names="ab", groups=["s", "s", "s"])
    assert report.accuracy == pytest.approx(1 / 3)
    assert report.groups is not None
    assert report.groups.correct == 1


def test_a_source_is_judged_against_its_majority_label() -> None:
    report = report_on([0, 1, 1], [1, 1, 1], groups=["s", "s", "s"])
    assert report.groups is not None
    assert report.groups.accuracy == 1.0


def test_sources_of_one_image_each_give_the_intervals_of_images() -> None:
    labels, probabilities = random_case()
    by_image = report_on(labels, None, probabilities, names="abcd")
    sources = [str(image) for image in range(len(labels))]
    by_source = report_on(labels, None, probabilities, names="abcd", groups=sources)
    assert by_source.confidence_intervals.accuracy == by_image.confidence_intervals.accuracy
    assert by_source.groups is not None
    assert by_source.groups.accuracy == by_source.accuracy


# The shape of the report


def test_a_report_is_json_with_the_fields_of_the_api() -> None:
    labels, probabilities = random_case()
    report = report_on(labels, None, probabilities, names="abcd", groups=["s", "t", "u"] * 100)
    document = json.loads(json.dumps(asdict(report), allow_nan=False))
    assert list(document) == ["n", "labels", *SCORES, "confidence_intervals", "groups"]
    assert list(document["per_class"]) == document["labels"] == ["a", "b", "c", "d"]
    assert list(document["per_class"]["a"]) == ["precision", "recall", "f1", "specificity", "support"]
    assert (
        list(document["macro_avg"])
        == list(document["weighted_avg"])
        == ["precision", "recall", "f1", "support"]
    )
    assert list(document["confidence_intervals"]) == ["level", "unit", "accuracy", "macro_f1"]
    assert list(document["groups"]) == ["n", "accuracy", "correct"]


# What cannot be evaluated


@pytest.mark.parametrize(
    ("labels", "predictions", "complaint"),
    [
        ([], [], "no labels"),
        ([0, 3], [0, 0], r"labels\[1\] is 3"),
        ([0, -1], [0, 0], r"labels\[1\] is -1"),
        ([0, 1], [0, 7], r"predictions\[1\] is 7"),
        ([0, 1], [0], "1 predictions for 2 labels"),
        ([0, 1], None, "neither"),
        ([0.5, 1.0], [0, 1], "whole numbers"),
        ([True, False], [0, 1], "whole numbers"),
        ([[0], [1]], [0, 1], "whole numbers"),
        (["a", "b"], [0, 1], "whole numbers"),
        ([0, 10**30], [0, 1], "whole numbers"),
    ],
)
def test_bad_labels_or_predictions_are_refused(labels: Any, predictions: Any, complaint: str) -> None:
    with pytest.raises(BadLabels, match=complaint):
        report_on(labels, predictions)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ([0.5, 0.5], r"probabilities\[1\] is not 3 numbers"),
        (0.5, r"probabilities\[1\] is not 3 numbers"),
        ([0.5, 0.5, math.nan], r"probabilities\[1\] has a number"),
        ([0.5, 0.5, math.inf], r"probabilities\[1\] has a number"),
        ([1e308, 1e308, 1e308], r"probabilities\[1\] has a number"),
        ([0.6, 0.6, -0.2], r"probabilities\[1\] has a number"),
        ([0.5, 0.3, 0.1], r"probabilities\[1\] sums to 0.9"),
        ([0.5, 0.5, 0.0011], r"probabilities\[1\] sums to 1.0011"),
    ],
)
def test_bad_probabilities_are_refused(row: Any, complaint: str) -> None:
    with pytest.raises(BadLabels, match=complaint):
        report_on([0, 1, 2], None, [[1.0, 0.0, 0.0], row, [0.0, 0.0, 5.0]])


def test_probabilities_or_groups_of_another_length_are_refused() -> None:
    with pytest.raises(BadLabels, match="1 probabilities for 2 labels"):
        report_on([0, 1], None, [[1.0, 0.0, 0.0]])
    with pytest.raises(BadLabels, match="3 groups for 2 labels"):
        report_on([0, 1], [0, 1], groups=["s", "s", "t"])
