"""Splits by source photo; the one split by file has `leaking` in its name.

A class whose cells are all from one source, such as a slide, cannot be split by source: its files are dealt
one by one, and `divided_sources` names it.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from training.data import Row
from training.errors import DataError

NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}

Part = TypeVar("Part")


@dataclass(frozen=True)
class Division(Generic[Part]):
    """The part of each source, or of each file of a class in `by_file`."""

    parts: Mapping[str, Part]
    by_file: frozenset[str]

    def part(self, row: Row) -> Part | None:
        """Return the part that a row is in, None if neither its source nor its file was divided."""
        return self.parts.get(unit_of(row, self.by_file))


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

    Raise DataError if a class has fewer sources than there are splits, or a single one with fewer files.
    """
    names = NAMES[len(ratio)]
    division = divide(
        rows,
        len(ratio),
        lambda n: _allot(n, ratio, names),
        seed,
        f"for {len(ratio)} splits",
        "; add photos or use fewer splits",
    )
    return [replace(row, split=division.parts[unit_of(row, division.by_file)]) for row in rows]


def divide(
    rows: Sequence[Row],
    parts: int,
    allot: Callable[[int], Sequence[Part]],
    seed: int,
    purpose: str,
    advice: str,
) -> Division[Part]:
    """Divide the sources into parts, so that each class is in each part.

    allot: number of sources of a class → the part of each. A source of several classes counts for its most
    frequent one, unless another one is too rare for that. Raise DataError, with purpose and advice, if a
    class has too few sources.
    """
    by_file = check_sources(rows, parts, purpose, advice)
    scarce: list[str] = []
    while True:
        division = deal(rows, allot, seed, by_file, scarce)
        reached = {(row.label, division.part(row)) for row in rows}
        lacking = [
            label
            for label in sorted({row.label for row in rows})
            if sum(name == label for name, _ in reached) < parts
        ]
        if not lacking:
            return division
        if label := next((each for each in lacking if each not in scarce), None):
            scarce.append(label)
        else:  # its slides are those of other classes too
            by_file |= {lacking[0]}
            check_files(rows, by_file, parts, purpose, advice)


def check_sources(rows: Sequence[Row], parts: int, purpose: str, advice: str) -> frozenset[str]:
    """Return the classes that have a single source and must be divided by file.

    Raise DataError that names each class with too few sources or files, and what to do.
    """
    sources: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        sources[row.label].add(row.source)
    few = [
        f"{label} has {len(found)} source photos, too few {purpose}"
        for label, found in sorted(sources.items())
        if 1 < len(found) < parts
    ]
    if few:
        raise DataError("; ".join(few) + advice)
    by_file = frozenset(label for label, found in sources.items() if len(found) < parts)
    if sources and len(by_file) == len(sources):  # then it would be no split by source at all
        few = [f"{label} has 1 source photos, too few {purpose}" for label in sorted(sources)]
        raise DataError("; ".join(few) + advice)
    check_files(rows, by_file, parts, purpose, advice)
    return by_file


def check_files(rows: Sequence[Row], by_file: frozenset[str], parts: int, purpose: str, advice: str) -> None:
    counts = Counter(row.label for row in rows if row.label in by_file)
    few = [
        f"{label} has 1 source photos, too few {purpose}"
        if n == 1
        else f"{label} has {n} files of 1 source, too few {purpose}"
        for label, n in sorted(counts.items())
        if n < parts
    ]
    if few:
        raise DataError("; ".join(few) + advice)


def deal(
    rows: Sequence[Row],
    allot: Callable[[int], Sequence[Part]],
    seed: int,
    by_file: frozenset[str],
    scarce: Sequence[str],
) -> Division[Part]:
    """Give each source, or file of a class in `by_file`, a part; scarce: classes that sources count for."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for unit, label in sorted(unit_labels(rows, by_file, scarce).items()):
        by_class[label].append(unit)
    parts: dict[str, Part] = {}
    for label, units in sorted(by_class.items()):
        random.Random(f"{seed}/{label}").shuffle(units)
        parts |= dict(zip(units, allot(len(units)), strict=True))
    return Division(parts, by_file)


def unit_of(row: Row, by_file: frozenset[str]) -> str:
    """Return what is never divided: the source, or the file of a class in `by_file`."""
    return f"{row.archive}/{row.path}" if row.label in by_file else row.source


def unit_labels(rows: Sequence[Row], by_file: frozenset[str], scarce: Sequence[str]) -> dict[str, str]:
    """Return the class that each unit counts for: the first of `scarce` in it, else its most frequent."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[unit_of(row, by_file)][row.label] += 1
    return {
        unit: next((label for label in scarce if label in count), count.most_common(1)[0][0])
        for unit, count in counts.items()
    }


def divided_sources(rows: Sequence[Row]) -> list[str]:
    """Return the classes that have cells of one source in several splits."""
    splits: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        if row.known:
            splits[row.label, row.source].add(row.split)
    return sorted({label for (label, _), found in splits.items() if len(found) > 1})


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


def into_folds(rows: Sequence[Row], folds: int, seed: int, advice: str) -> Division[int]:
    """Return the fold, from 0, that holds each source out; each class's sources are distributed evenly.

    Raise DataError, which ends with `advice`, if a class has fewer sources than folds.
    """
    return divide(rows, folds, lambda n: [i % folds for i in range(n)], seed, f"for {folds} folds", advice)


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
