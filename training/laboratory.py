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
    return paragraphs(table(HEAD, lines), summary(laboratories))


def lines_of(laboratories: Sequence[Laboratory]) -> str:
    """Return the table for a terminal of 80 columns; no laboratory was seen in training."""
    form = "{:16.16} {:>6} {:>6}  {:19}  {:>5}  {:19}"
    head = form.format("laboratory", "images", "groups", "balanced accuracy", "kept", "right when kept")
    rows = [
        form.format(
            printable(one.laboratory),
            one.images,
            one.groups,
            spanned(one.balanced_accuracy, one.interval),
            percent(one.kept),
            spanned(one.right_when_kept, one.kept_interval),
        ).rstrip()
        for one in laboratories
    ]
    return "\n".join([head, *rows, "", summary(laboratories)])


def summary(laboratories: Sequence[Laboratory]) -> str:
    mean = float(np.mean([one.balanced_accuracy for one in laboratories]))
    worst = min(laboratories, key=lambda one: one.balanced_accuracy)
    return f"Mean {mean:.3f}; worst {worst.balanced_accuracy:.3f} ({printable(worst.laboratory)})."


def spanned(value: float | None, interval: Interval | None) -> str:
    """Return a score and its interval in 19 characters."""
    return "–" if value is None or interval is None else f"{value:.3f} ({interval[0]:.3f}–{interval[1]:.3f})"


def ranged(value: float | None, interval: Interval | None) -> str:
    if value is None or interval is None:
        return "–"
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
