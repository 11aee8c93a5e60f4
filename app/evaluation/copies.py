"""Cells that are no evidence: one picture in two classes, or one that the model was adapted to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from app.errors import BadLabels
from app.printable import few

HASH_DIGITS = 16  # of a picture's SHA-256, as an adapted bundle records it


class Labelled(Protocol):
    """A picture of a class."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> int: ...


def of_two_classes(pictures: Sequence[Labelled], hashes: Sequence[str]) -> str:
    """Return which pictures have two labels, in words that name the files; empty if none has.

    hashes: of each picture; empty for one that was not read.
    """
    first: dict[str, int] = {}
    twice = []
    for place, sha256 in enumerate(hashes):
        if not sha256 or (before := first.setdefault(sha256, place)) == place:
            continue
        one, other = pictures[before], pictures[place]
        if one.label != other.label:
            twice.append(f"{one.name} and {other.name}")
    return f"the same picture is in two classes: {few(twice)}" if twice else ""


def refuse_two_classes(pictures: Sequence[Labelled], hashes: Sequence[str]) -> None:
    """Raise BadLabels if a picture has two labels. Arguments: as of `of_two_classes`."""
    if fault := of_two_classes(pictures, hashes):
        raise BadLabels(fault)


def adapted_to(training: Mapping[str, Any]) -> frozenset[str]:
    """Return what a bundle's `training` records of the labelled pictures that it was adapted to."""
    adapted = training.get("adapted")
    hashes = adapted.get("pictures") if isinstance(adapted, Mapping) else None
    return frozenset(map(str, hashes)) if isinstance(hashes, list | tuple) else frozenset()


def cautions_of_copies(hashes: Collection[str], known: Collection[str]) -> list[str]:
    """Say how many pictures are among those that the model was adapted to."""
    repeated = sum(sha256[:HASH_DIGITS] in known for sha256 in hashes)
    if not repeated:
        return []
    return [
        f"The model was adapted to {repeated} of these {len(hashes)} cells: the figures are too good. Use"
        " cells of other slides."
    ]
