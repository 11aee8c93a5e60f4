"""How a recipe does in a laboratory that it has never seen: each is left out once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.config import read_config
from training.data import Row
from training.fit import read_facts
from training.laboratory import Interval, Laboratory
from training.module import BEST, load_checkpoint
from training.network import round_to_half
from training.review import ReviewLimits, calibrate_elsewhere, laboratories_of
from training.rows import choose_rows, other_cells
from training.scored import HeldOut, find_references, score_folds, score_rows
from training.selection import check_archives

RESAMPLES = 2000
LEVEL = 0.95

Flags = NDArray[np.bool_]


def leave_out(rows: Sequence[Row], run: Path, right_when_kept: float) -> list[Laboratory]:
    """Score each laboratory of a finished run with `select_on = "laboratories"`.

    The thresholds are those that `export` sets with the same `right_when_kept`.
    """
    config = read_config(run / "config.json")
    train, validation = choose_rows(rows, config)
    check_archives([*train, *validation, *other_cells(rows)])
    read_facts(run, train, validation)
    others = other_cells(rows)
    held_out = score_folds(run, train, validation, others, config)
    network = load_checkpoint(run / BEST, config)
    round_to_half(network)  # as in the bundle
    references = find_references(network, train, others, config)
    seen = score_rows(network, validation, references, config)
    return judge(held_out, *calibrate_elsewhere(held_out, seen, references.distance, right_when_kept))


def judge(held_out: HeldOut, temperature: float, limits: ReviewLimits) -> list[Laboratory]:
    """Return the figures of each laboratory, in the order of their names."""
    right = held_out.logits.argmax(1) == held_out.labels
    kept = limits.keep(held_out, temperature)
    return [
        figures(name, held_out, np.flatnonzero(members), right, kept)
        for name, members in laboratories_of(held_out).items()
    ]


def figures(name: str, held_out: HeldOut, members: NDArray[np.intp], right: Flags, kept: Flags) -> Laboratory:
    sources = [held_out.rows[i].source for i in members]
    size = Counter(sources)
    places = {source: place for place, source in enumerate(size)}
    # Shares of each group's images: [groups, classes, (all, right, kept, kept and right)].
    sums = np.zeros((len(size), held_out.logits.shape[1], 4))
    for i, source in zip(members, sources, strict=True):
        flags = (1.0, right[i], kept[i], kept[i] and right[i])
        sums[places[source], held_out.labels[i]] += np.array(flags) / size[source]
    drawn = np.random.default_rng(0).multinomial(len(size), np.full(len(size), 1 / len(size)), RESAMPLES)
    samples = np.tensordot(drawn, sums, axes=1)  # [resamples, classes, 4]
    total = sums.sum(0)
    among_kept = safe_ratio(total[:, 3].sum(), total[:, 2].sum())
    return Laboratory(
        name,
        len(members),
        len(size),
        balanced(total),
        interval([balanced(sample) for sample in samples]),
        float(total[:, 2].sum() / total[:, 0].sum()),
        among_kept,
        None
        if among_kept is None
        else interval([safe_ratio(s[:, 3].sum(), s[:, 2].sum()) or 0.0 for s in samples]),
    )


def balanced(sums: NDArray[np.floating]) -> float:
    """Return the mean over classes of right ÷ all; a class without images is left out."""
    present = sums[:, 0] > 0
    return float((sums[present, 1] / sums[present, 0]).mean())


def safe_ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def interval(values: Sequence[float]) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
