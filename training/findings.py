"""Figures of a report beside the scores: review, risk by coverage, photos, out-of-distribution, int8."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from app.engine.classifier import REASONS, Prediction
from app.imaging.framing import Frame
from training.data import Row

LEAST_SIDE = 48  # pixels; a smaller square beside the cell is not used

Table = dict[str, Any]


def review_counts(rows: Sequence[Row], answers: Sequence[Prediction]) -> Table:
    """Count the images sent to review, by reason, and the wrong ones among them."""
    reviewed = np.array([answer.review for answer in answers])
    wrong = np.array([answer.label != row.label for row, answer in zip(rows, answers, strict=True)])
    reasons = Counter(reason for answer in answers for reason in answer.review_reasons)
    return {
        "n": int(reviewed.sum()),
        "share": float(reviewed.mean()),
        "reasons": {reason: reasons[reason] for reason in REASONS},
        "wrong": int((wrong & reviewed).sum()),
        "accuracy_of_the_rest": None if reviewed.all() else float((~wrong)[~reviewed].mean()),
    }


def misclassified_photos(rows: Sequence[Row], answers: Sequence[Prediction]) -> list[Table]:
    """Return the photos with at least one wrong image, those with the most first."""
    predicted: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row, answer in zip(rows, answers, strict=True):
        predicted[row.source, row.label][answer.label] += 1
    tables = [
        {
            "photo": photo,
            "label": label,
            "images": counts.total(),
            "wrong": counts.total() - counts[label],
            "predicted": {name: n for name, n in counts.most_common() if name != label},
        }
        for (photo, label), counts in sorted(predicted.items())
    ]
    return sorted((table for table in tables if table["wrong"]), key=lambda table: -table["wrong"])


def risk_coverage(rows: Sequence[Row], answers: Sequence[Prediction]) -> Table:
    """Return the risk-coverage curve: the error rate of the most confident images, by their share of all.

    `area` is the mean of the risks (Geifman et al. 2019); `coverage` and `risk` are the curve's points
    at every twentieth of the images.
    """
    order = np.argsort([-answer.confidence for answer in answers], kind="stable")
    wrong = np.array([answer.label != row.label for row, answer in zip(rows, answers, strict=True)])[order]
    risk = wrong.cumsum() / np.arange(1, len(wrong) + 1)
    shares = np.arange(1, 21) / 20
    at = np.ceil(shares * len(wrong)).astype(int) - 1
    return {"area": float(risk.mean()), "coverage": shares.tolist(), "risk": risk[at].tolist()}


def beside_the_cell(image: Image.Image, frame: Frame) -> Image.Image | None:
    """Return the largest square of the image that does not touch the frame.

    None if the image has no nucleus or the square would be smaller than LEAST_SIDE.
    """
    left, top, right, bottom = frame.box
    width, height = image.size
    boxes = [(0, 0, left, height), (right, 0, width, height), (0, 0, width, top), (0, bottom, width, height)]
    x0, y0, x1, y1 = max(boxes, key=lambda box: min(box[2] - box[0], box[3] - box[1]))
    side = int(min(x1 - x0, y1 - y0))
    if not frame.nucleus or side < LEAST_SIDE:
        return None
    x, y = int((x0 + x1 - side) / 2), int((y0 + y1 - side) / 2)
    return image.crop((x, y, x + side, y + side))


def ood_separation(answers: Sequence[Prediction], others: Sequence[Prediction]) -> Table:
    """Return how well `ood_score` separates images from `others`: the area under the ROC curve.

    `reviewed` is the share of `others` that is sent to review; both are None without others.
    """
    from sklearn.metrics import roc_auc_score

    scores = [answer.ood_score for answer in (*answers, *others)]
    truth = [0] * len(answers) + [1] * len(others)
    reviewed = float(np.mean([answer.review for answer in others])) if others else None
    return {
        "n": len(others),
        "auroc": float(roc_auc_score(truth, scores)) if others else None,
        "reviewed": reviewed,
    }


def separation_by_type(
    answers: Sequence[Prediction], others: Sequence[Row], other_answers: Sequence[Prediction]
) -> dict[str, Table]:
    """Return `ood_separation` from each type of other cells."""
    by_type: dict[str, list[Prediction]] = defaultdict(list)
    for row, answer in zip(others, other_answers, strict=True):
        by_type[row.label].append(answer)
    return {label: ood_separation(answers, by_type[label]) for label in sorted(by_type)}


def agreement(rows: Sequence[Row], answers: Sequence[Prediction], exact: Sequence[Prediction]) -> Table:
    """Compare the serving engine's answers with `exact`, those of the network in float32.

    Return the share of equal labels and the accuracy in float32.
    """
    same = [answer.label == reference.label for answer, reference in zip(answers, exact, strict=True)]
    right = [reference.label == row.label for reference, row in zip(exact, rows, strict=True)]
    return {"same_label": float(np.mean(same)), "accuracy": float(np.mean(right))}


def headline(report: Table) -> Table:
    """Return the scores of a report that another bundle's model card shows beside the paper's."""
    names = ("n", "fingerprint", "accuracy", "macro_avg", "weighted_avg", "mse", "rmse", "groups")
    return {name: report[name] for name in names}
