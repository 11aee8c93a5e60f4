"""Who is trained on and who is not: always by source photo, unless a name says that it leaks."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from training.data import Row
from training.errors import DataError

NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}


def parse_ratio(text: str) -> tuple[float, ...]:
    """`80:10:10` → (0.8, 0.1, 0.1); two or three parts."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError as error:
        raise DataError(f"split {text!r} is not a ratio such as 80:20 or 80:10:10") from error
    if len(parts) not in NAMES or min(parts) <= 0:
        raise DataError(f"split {text!r} is not a ratio of two or three positive parts such as 80:10:10")
    return tuple(part / sum(parts) for part in parts)


def split_by_source(rows: Sequence[Row], ratio: Sequence[float], seed: int) -> list[Row]:
    """Give each source one split; each class's sources are shared out in the ratio."""
    names = NAMES[len(ratio)]
    by_class: dict[str, list[str]] = defaultdict(list)
    for source, label in sorted(source_labels(rows).items()):
        by_class[label].append(source)
    chosen: dict[str, str] = {}
    for label, sources in sorted(by_class.items()):
        if len(sources) < len(ratio):
            raise DataError(
                f"{label} has {len(sources)} source photos, too few for {len(ratio)} splits; "
                "add photos or use fewer splits"
            )
        random.Random(f"{seed}/{label}").shuffle(sources)
        chosen |= dict(zip(sources, _allot(len(sources), ratio, names), strict=True))
    return [replace(row, split=chosen[row.source]) for row in rows]


def split_by_file_leaking(rows: Sequence[Row], ratio: Sequence[float], seed: int) -> list[Row]:
    """As many public notebooks do: near copies of one photo land on both sides. Never for a claim."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    names = dict(zip(order, _allot(len(rows), ratio, NAMES[len(ratio)]), strict=True))
    return [replace(row, split=names[i]) for i, row in enumerate(rows)]


def hold_out(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Training rows → (rows to fit, rows of held-out sources to select on); uncertain rows are left out."""
    certain = [row for row in rows if row.certain]
    split = split_by_source(certain, (1 - share, share), seed)
    return [row for row in split if row.split == "train"], [
        replace(row, split="val") for row in split if row.split == "test"
    ]


def into_folds(rows: Sequence[Row], folds: int, seed: int) -> dict[str, int]:
    """Source → the fold, from 0, that holds it out; each class's sources are dealt out in turn."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for source, label in sorted(source_labels(rows).items()):
        by_class[label].append(source)
    found: dict[str, int] = {}
    for label, sources in sorted(by_class.items()):
        if len(sources) < folds:
            raise DataError(f"{label} has {len(sources)} source photos, too few for {folds} folds")
        random.Random(f"{seed}/{label}").shuffle(sources)
        found |= {source: i % folds for i, source in enumerate(sources)}
    return found


def thin(rows: Sequence[Row], per_source: int, seed: int) -> list[Row]:
    """At most so many files of each source: copies of one photo say little more than the first few."""
    shuffled = sorted(rows, key=lambda row: row.path)
    random.Random(seed).shuffle(shuffled)
    taken: Counter[str] = Counter()
    kept = []
    for row in shuffled:
        taken[row.source] += 1
        if taken[row.source] <= per_source:
            kept.append(row)
    return sorted(kept, key=lambda row: row.path)


def source_labels(rows: Sequence[Row]) -> dict[str, str]:
    """A source's class: its most frequent one (a photo of two cells may carry two)."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row.source][row.label] += 1
    return {source: count.most_common(1)[0][0] for source, count in counts.items()}


def _allot(n: int, ratio: Sequence[float], names: Sequence[str]) -> list[str]:
    """n names in the ratio, each at least once."""
    sizes = [max(1, round(n * part)) for part in ratio[1:]]
    return [names[0]] * (n - sum(sizes)) + [
        name for name, size in zip(names[1:], sizes, strict=True) for _ in range(size)
    ]
