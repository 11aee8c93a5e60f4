"""The figures of a laboratory that was left out of training, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.printable import printable
from training.markdown import paragraphs, percent, table

HEAD = ("laboratory", "seen in training", "images", "groups", "balanced accuracy", "kept", "right when kept")

Interval = tuple[float, float]


@dataclass(frozen=True)
class Laboratory:
    """The scores in one laboratory of the network that was trained without it.

    balanced_accuracy: mean of the classes' recalls. kept: share of images not sent to review by confidence or
    OOD score; right_when_kept: share of them that is right, None if none is kept. Intervals: 95 %, over
    groups (source photos or slides). Images of a group share its weight.
    """

    laboratory: str
    images: int
    groups: int
    balanced_accuracy: float
    interval: Interval
    kept: float
    right_when_kept: float | None
    kept_interval: Interval | None


def table_of(laboratories: Sequence[Laboratory]) -> str:
    """Return a Markdown table, one line for each laboratory, with mean and worst."""
    lines = [
        (
            printable(one.laboratory),
            "no",
            f"{one.images:,}",
            f"{one.groups:,}",
            ranged(one.balanced_accuracy, one.interval),
            percent(one.kept),
            ranged(one.right_when_kept, one.kept_interval),
        )
        for one in laboratories
    ]
    mean = float(np.mean([one.balanced_accuracy for one in laboratories]))
    worst = min(laboratories, key=lambda one: one.balanced_accuracy)
    return paragraphs(
        table(HEAD, lines),
        f"Mean {mean:.3f}; worst {worst.balanced_accuracy:.3f} ({printable(worst.laboratory)}).",
    )


def ranged(value: float | None, interval: Interval | None) -> str:
    if value is None or interval is None:
        return "–"
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
