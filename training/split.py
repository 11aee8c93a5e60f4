"""Splits by source photo; the one split by file has `leaking` in its name."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from training.data import Row
from training.errors import DataError

NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}


def parse_ratio(text: str) -> tuple[float, ...]:
    """Parse two or three parts: `80:10:10` → (0.8, 0.1, 0.1).

    Raise DataError if they are not positive and finite.
    """
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError as error:
        raise DataError(f"split {text!r} is not a ratio such as 80:20 or 80:10:10") from error
    if len(parts) not in NAMES or min(parts) <= 0 or not math.isfinite(sum(parts)):
        raise DataError(f"split {text!r} is not a ratio of two or three positive parts such as 80:10:10")
    return tuple(part / sum(parts) for part in parts)


def split_by_source(rows: Sequence[Row], ratio: Sequence[float], seed: int) -> list[Row]:
    """Assign each source to one split, in the ratio within each class.

    Raise DataError if a class has fewer sources than there are splits.
    """
    names = NAMES[len(ratio)]
    by_class: dict[str, list[str]] = defaultdict(list)
    for source, label in sorted(source_labels(rows).items()):
        by_class[label].append(source)
    split: dict[str, str] = {}
    for label, sources in sorted(by_class.items()):
        if len(sources) < len(ratio):
            raise DataError(
                f"{label} has {len(sources)} source photos, too few for {len(ratio)} splits; "
                "add photos or use fewer splits"
            )
        random.Random(f"{seed}/{label}").shuffle(sources)
        split |= dict(zip(sources, _allot(len(sources), ratio, names), strict=True))
    return [replace(row, split=split[row.source]) for row in rows]


def split_by_file_leaking(rows: Sequence[Row], ratio: Sequence[float], seed: int) -> list[Row]:
    """Split by file, as many public notebooks do; copies of one photo are on both sides (leakage)."""
    if len(rows) < len(ratio):
        raise DataError(f"there are {len(rows)} files, too few for {len(ratio)} splits")
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    names = dict(zip(order, _allot(len(rows), ratio, NAMES[len(ratio)]), strict=True))
    return [replace(row, split=names[i]) for i, row in enumerate(rows)]


def hold_out(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split training rows into training and validation rows by source; leave out uncertain rows."""
    certain = [row for row in rows if row.certain]
    split = split_by_source(certain, (1 - share, share), seed)
    return [row for row in split if row.split == "train"], [
        replace(row, split="val") for row in split if row.split == "test"
    ]


def into_folds(rows: Sequence[Row], folds: int, seed: int) -> dict[str, int]:
    """Return source → the fold, from 0, that holds it out; each class's sources are distributed evenly.

    Raise DataError if a class has fewer sources than folds.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for source, label in sorted(source_labels(rows).items()):
        by_class[label].append(source)
    fold: dict[str, int] = {}
    for label, sources in sorted(by_class.items()):
        if len(sources) < folds:
            raise DataError(f"{label} has {len(sources)} source photos, too few for {folds} folds")
        random.Random(f"{seed}/{label}").shuffle(sources)
        fold |= {source: i % folds for i, source in enumerate(sources)}
    return fold


def thin(rows: Sequence[Row], per_source: int, seed: int) -> list[Row]:
    """Return at most `per_source` files of each source, since further copies of one photo add little."""
    shuffled = sorted(rows, key=lambda row: row.path)
    random.Random(seed).shuffle(shuffled)
    counts: Counter[str] = Counter()
    thinned = []
    for row in shuffled:
        counts[row.source] += 1
        if counts[row.source] <= per_source:
            thinned.append(row)
    return sorted(thinned, key=lambda row: row.path)


def source_labels(rows: Sequence[Row]) -> dict[str, str]:
    """Return each source's most frequent class (a photo of two cells may have two classes)."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row.source][row.label] += 1
    return {source: count.most_common(1)[0][0] for source, count in counts.items()}


def _allot(n: int, ratio: Sequence[float], names: Sequence[str]) -> list[str]:
    """Return n names in the ratio, each at least once; n is at least the number of names."""
    sizes = [max(1, round(n * part)) for part in ratio[1:]]
    while sum(sizes) >= n:  # the first needs one too
        sizes[sizes.index(max(sizes))] -= 1
    return [names[0]] * (n - sum(sizes)) + [
        name for name, size in zip(names[1:], sizes, strict=True) for _ in range(size)
    ]
