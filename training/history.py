"""What a run logged, epoch by epoch."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.errors import DataError

History = Mapping[int, Mapping[str, float]]  # epoch, from 1 → column → value


def read_history(run: Path) -> History:
    """Every log of a run, one for each time that it was started or resumed; the later beats the earlier."""
    logs = sorted(run.rglob("metrics.csv"), key=lambda path: (len(str(path)), path))  # version_2, version_10
    if not logs:
        raise DataError(f"{run} has no metrics.csv; name a run that `leuko-train fit` wrote")
    history: dict[int, dict[str, float]] = {}
    for log in logs:
        found = read_metrics(log)
        first = min(found, default=math.inf)
        history = {epoch: values for epoch, values in history.items() if epoch < first} | found
    return history


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Lightning's log, whose training and validation values stand on separate rows of the same epoch."""
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
    """(epoch, value) in order, where the log has one."""
    return [(epoch, values[name]) for epoch, values in sorted(history.items()) if name in values]


def best_epoch(history: History, monitor: str) -> int | None:
    """The first of the best, as the checkpoint is; None where the log does not have the column."""
    sign = 1 if monitor.endswith("loss") else -1
    best = min(column(history, monitor), key=lambda point: sign * point[1], default=None)
    return best and best[0]


def mean_history(histories: Sequence[History]) -> History:
    """Of runs side by side: the mean of what all of them logged."""
    epochs = set.intersection(*(set(history) for history in histories))
    return {
        epoch: {
            name: sum(history[epoch][name] for history in histories) / len(histories)
            for name in set.intersection(*(set(history[epoch]) for history in histories))
        }
        for epoch in sorted(epochs)
    }
