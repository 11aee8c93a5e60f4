"""What a report counts beside the scores: review, risk by coverage, photos, and pictures without a cell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from app.engine.classifier import Prediction
from app.imaging.framing import Frame
from training.data import Row

LEAST_SIDE = 48  # pixels

Table = dict[str, Any]


def review_counts(rows: Sequence[Row], answers: Sequence[Prediction]) -> Table:
    """How many images are sent to a person, why, and how many of the wrong ones are among them."""
    reviewed = np.array([answer.review for answer in answers])
    wrong = np.array([answer.label != row.label for row, answer in zip(rows, answers, strict=True)])
    reasons = Counter(reason for answer in answers for reason in answer.review_reasons)
    return {
        "n": int(reviewed.sum()),
        "share": float(reviewed.mean()),
        "low_confidence": reasons["low_confidence"],
        "out_of_distribution": reasons["out_of_distribution"],
        "wrong": int((wrong & reviewed).sum()),
        "accuracy_of_the_rest": None if reviewed.all() else float((~wrong)[~reviewed].mean()),
    }


def misclassified_photos(rows: Sequence[Row], answers: Sequence[Prediction]) -> list[Table]:
    """The photos with a wrong image, those with most first."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row, answer in zip(rows, answers, strict=True):
        found[row.source, row.label][answer.label] += 1
    tables = [
        {
            "photo": photo,
            "label": label,
            "images": called.total(),
            "wrong": called.total() - called[label],
            "predicted": {name: n for name, n in called.most_common() if name != label},
        }
        for (photo, label), called in sorted(found.items())
    ]
    return sorted((table for table in tables if table["wrong"]), key=lambda table: -table["wrong"])


def risk_coverage(rows: Sequence[Row], answers: Sequence[Prediction]) -> Table:
    """The share wrong among the most confident, for every share of the images that these can be.

    The area under the curve is the mean of the risks (Geifman et al. 2019); `coverage` and `risk` are its
    points at every twentieth of the images.
    """
    order = np.argsort([-answer.confidence for answer in answers], kind="stable")
    wrong = np.array([answer.label != row.label for row, answer in zip(rows, answers, strict=True)])[order]
    risk = wrong.cumsum() / np.arange(1, len(wrong) + 1)
    shares = np.arange(1, 21) / 20
    at = np.ceil(shares * len(wrong)).astype(int) - 1
    return {"area": float(risk.mean()), "coverage": shares.tolist(), "risk": risk[at].tolist()}


def beside_the_cell(image: Image.Image, frame: Frame) -> Image.Image | None:
    """The largest square of the picture that is clear of the frame; None where there is no room for one."""
    left, top, right, bottom = frame.box
    width, height = image.size
    boxes = [(0, 0, left, height), (right, 0, width, height), (0, 0, width, top), (0, bottom, width, height)]
    x0, y0, x1, y1 = max(boxes, key=lambda box: min(box[2] - box[0], box[3] - box[1]))
    side = int(min(x1 - x0, y1 - y0))
    if not frame.nucleus or side < LEAST_SIDE:
        return None
    x, y = int((x0 + x1 - side) / 2), int((y0 + y1 - side) / 2)
    return image.crop((x, y, x + side, y + side))


def strangeness(answers: Sequence[Prediction], others: Sequence[Prediction]) -> Table:
    """How well `ood_score` tells the pictures from others: the area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    scores = [answer.ood_score for answer in (*answers, *others)]
    truth = [0] * len(answers) + [1] * len(others)
    reviewed = float(np.mean([answer.review for answer in others])) if others else None
    return {
        "n": len(others),
        "auroc": float(roc_auc_score(truth, scores)) if others else None,
        "reviewed": reviewed,
    }


def agreement(rows: Sequence[Row], answers: Sequence[Prediction], exact: Sequence[Prediction]) -> Table:
    """The engine that serves against the network in float32: how many labels are the same."""
    same = [one.label == other.label for one, other in zip(answers, exact, strict=True)]
    right = [one.label == row.label for one, row in zip(exact, rows, strict=True)]
    return {"same_label": float(np.mean(same)), "accuracy": float(np.mean(right))}


def headline(report: Table) -> Table:
    """What stands beside the paper's figures, of a report on what the paper's recipe gave."""
    names = ("n", "fingerprint", "accuracy", "macro_avg", "weighted_avg", "mse", "rmse", "groups")
    return {name: report[name] for name in names}
