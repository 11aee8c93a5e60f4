"""The log of a run, by epoch."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.errors import DataError

History = Mapping[int, Mapping[str, float]]  # epoch, from 1 → column → value


def read_history(run: Path) -> History:
    """Read all logs of a run, one per start or resumption; a later log replaces earlier values from its first
    epoch on. Raise DataError if the run has no log."""
    logs = sorted(run.rglob("metrics.csv"), key=lambda path: (len(str(path)), path))  # version_2, version_10
    if not logs:
        raise DataError(f"{run} has no metrics.csv; give a run of `leuko-train fit`")
    history: dict[int, dict[str, float]] = {}
    for log in logs:
        epochs = read_metrics(log)
        first = min(epochs, default=math.inf)
        history = {epoch: values for epoch, values in history.items() if epoch < first} | epochs
    return history


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Read Lightning's log, which has an epoch's training and validation values on separate rows.

    Values that are not finite are left out.
    """
    epochs: dict[int, dict[str, float]] = defaultdict(dict)
    try:
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                epoch = epochs[int(line.pop("epoch")) + 1]
                values = {name: float(text) for name, text in line.items() if text and name != "step"}
                epoch |= {name: value for name, value in values.items() if math.isfinite(value)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a log of `leuko-train fit` ({error!r})") from error
    return dict(epochs)


def column(history: History, name: str) -> list[tuple[int, float]]:
    """Return (epoch, value) by epoch, without the epochs that lack the column."""
    return [(epoch, values[name]) for epoch, values in sorted(history.items()) if name in values]


def best_epoch(history: History, monitor: str) -> int | None:
    """Return the first epoch with the best value, like the checkpoint; None if the log lacks the column."""
    sign = 1 if monitor.endswith("loss") else -1
    best = min(column(history, monitor), key=lambda point: sign * point[1], default=None)
    return best and best[0]


def mean_history(histories: Sequence[History]) -> History:
    """Return the mean of several runs, for the epochs and columns that all of them have."""
    epochs = set.intersection(*(set(history) for history in histories))
    return {
        epoch: {
            name: sum(history[epoch][name] for history in histories) / len(histories)
            for name in set.intersection(*(set(history[epoch]) for history in histories))
        }
        for epoch in sorted(epochs)
    }
