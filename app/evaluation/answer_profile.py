"""What the answers on a set are like as a whole, which a bundle carries for later ones to be held against."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from app.errors import BundleError

# Upper edges, each inclusive, as Prometheus has them; what is above the last is counted too.
CONFIDENCE_EDGES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
OOD_EDGES = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Histogram:
    """counts: one for each of `edges`, and one above them."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float

    def below(self) -> list[int]:
        """How many are at or below each edge, and how many there are."""
        return [*accumulate(self.counts)]


@dataclass(frozen=True)
class AnswerProfile:
    """of: what the images were; labels: predicted class → images; review: images that a person must see."""

    of: str
    n: int
    labels: Mapping[str, int]
    review: int
    confidence: Histogram
    ood_score: Histogram

    @property
    def review_share(self) -> float:
        return self.review / self.n

    def share(self, label: str) -> float:
        return self.labels[label] / self.n


@dataclass(frozen=True)
class Seen:
    """One answer, as far as it matters here."""

    label: str
    confidence: float
    ood_score: float
    review: bool


class Counts:
    """A histogram that grows."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self._edges = edges
        self._counts = [0] * (len(edges) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._edges, value)] += 1
        self._sum += value

    def histogram(self) -> Histogram:
        return Histogram(self._edges, tuple(self._counts), self._sum / max(1, sum(self._counts)))


def summarise(answers: Iterable[Seen], names: Sequence[str], of: str) -> AnswerProfile:
    """names: the classes, all of which are counted. The answers are not kept: there may be millions."""
    labels = dict.fromkeys(names, 0)
    confidence, ood_score = Counts(CONFIDENCE_EDGES), Counts(OOD_EDGES)
    review = 0
    for one in answers:
        labels[one.label] += 1
        confidence.add(one.confidence)
        ood_score.add(one.ood_score)
        review += one.review
    return AnswerProfile(
        of=of,
        n=sum(labels.values()),
        labels=labels,
        review=review,
        confidence=confidence.histogram(),
        ood_score=ood_score.histogram(),
    )


def dump(reference: AnswerProfile) -> dict[str, Any]:
    """For JSON; `parse` reads it."""
    return {
        "of": reference.of,
        "n": reference.n,
        "labels": dict(reference.labels),
        "review": reference.review,
        "confidence": _dump(reference.confidence),
        "ood_score": _dump(reference.ood_score),
    }


def parse(table: Mapping[str, Any], names: Sequence[str]) -> AnswerProfile:
    """Raises BundleError for what `dump` would not write."""
    try:
        found = AnswerProfile(
            of=str(table["of"]),
            n=int(table["n"]),
            labels={name: int(table["labels"][name]) for name in names},
            review=int(table["review"]),
            confidence=_parse(table["confidence"], CONFIDENCE_EDGES),
            ood_score=_parse(table["ood_score"], OOD_EDGES),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"reference is not what answers were like: {error!r}") from error
    sums = {sum(found.labels.values()), sum(found.confidence.counts), sum(found.ood_score.counts)}
    if found.n < 1 or sums != {found.n} or not 0 <= found.review <= found.n:
        raise BundleError(f"reference: its counts do not add up to its {found.n} images")
    return found


def _dump(histogram: Histogram) -> dict[str, Any]:
    return {
        "mean": round(histogram.mean, 4),
        "edges": list(histogram.edges),
        "counts": list(histogram.counts),
    }


def _parse(table: Mapping[str, Any], edges: tuple[float, ...]) -> Histogram:
    counts = tuple(int(count) for count in table["counts"])
    if tuple(table["edges"]) != edges or len(counts) != len(edges) + 1 or min(counts) < 0:
        raise ValueError(f"a histogram has the edges {edges}, and a count more")
    return Histogram(edges, counts, float(table["mean"]))
