"""`/evaluate/predictions` with the confusion matrix of the paper gives the scores in its table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import paper
from tests.fakes import serving


@pytest.fixture(scope="module")
def report() -> Iterator[dict[str, Any]]:
    labels, predictions = paper.labels_and_predictions()
    with serving() as client:
        yield client.post("/evaluate/predictions", json={"labels": labels, "predictions": predictions}).json()


def printed(scores: dict[str, Any]) -> tuple[str, str, str, int]:
    return f"{scores['precision']:.4f}", f"{scores['recall']:.4f}", f"{scores['f1']:.4f}", scores["support"]


@pytest.mark.parametrize("label", paper.LABELS)
def test_each_class_has_the_papers_scores(report: dict[str, Any], label: str) -> None:
    assert printed(report["per_class"][label]) == paper.PER_CLASS[label]


def test_the_averages_are_the_papers(report: dict[str, Any]) -> None:
    assert printed(report["macro_avg"]) == paper.MACRO
    assert printed(report["weighted_avg"]) == paper.WEIGHTED
    assert f"{report['accuracy']:.4f}" == paper.ACCURACY


def test_the_squared_errors_of_class_indices_are_the_papers(report: dict[str, Any]) -> None:
    assert f"{report['mse']:.4f}" == paper.MSE
    assert f"{report['rmse']:.4f}" == paper.RMSE


def test_scores_that_need_probabilities_are_null_without_them(report: dict[str, Any]) -> None:
    assert [report[name] for name in ("log_loss", "brier", "ece", "roc_auc_ovr")] == [None] * 4
    assert report["n"] == 2487
