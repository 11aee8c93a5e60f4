"""Answer profiles: the distribution of a model's answers on a set of images.

A bundle carries the profile of its answers on its reference set (the key `reference` of config.json).
`leuko drift` compares the answers of a period with it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from app.errors import BundleError
from app.validation import explain

# Inclusive upper edges, as in Prometheus; values above the last edge have a bin of their own.
CONFIDENCE_EDGES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
OOD_EDGES = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
INVALID = "the reference is not a valid answer profile"


@dataclass(frozen=True)
class Histogram:
    """counts: one for each of `edges` and one for values above the last."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float

    def below(self) -> list[int]:
        """Return the number of values at or below each edge, and the total."""
        return [*accumulate(self.counts)]


@dataclass(frozen=True)
class AnswerProfile:
    """Histograms of the labels, confidence and ood_score of a model's answers on a set of images.

    of: description of the set; n: images in it; labels: predicted class → images; review: images marked
    for review; reasons: reason → images marked for it, None in profiles that were made before these counts.
    """

    of: str
    n: int
    labels: Mapping[str, int]
    review: int
    confidence: Histogram
    ood_score: Histogram
    reasons: Mapping[str, int] | None = None

    @property
    def review_share(self) -> float:
        return self.review / self.n

    def share(self, label: str) -> float:
        return self.labels[label] / self.n


Count = Annotated[int, Field(strict=True, ge=0)]


class _Histogram(BaseModel):
    mean: Annotated[float, Field(strict=True, allow_inf_nan=False)]
    edges: tuple[float, ...]
    counts: tuple[Count, ...]


def _with_edges(expected: tuple[float, ...]) -> AfterValidator:
    def check(histogram: _Histogram) -> _Histogram:
        if histogram.edges != expected or len(histogram.counts) != len(expected) + 1:
            raise ValueError(f"must have the edges {list(expected)} and one count more than edges")
        return histogram

    return AfterValidator(check)


class _Profile(BaseModel):
    of: str
    n: Annotated[int, Field(strict=True, ge=1)]
    labels: dict[str, Count]
    review: Count
    confidence: Annotated[_Histogram, _with_edges(CONFIDENCE_EDGES)]
    ood_score: Annotated[_Histogram, _with_edges(OOD_EDGES)]
    reasons: dict[str, Count] | None = None


@dataclass(frozen=True)
class Seen:
    """The parts of one answer that a profile counts."""

    label: str
    confidence: float
    ood_score: float
    review: bool
    reasons: tuple[str, ...] = ()


class Counts:
    """A histogram to which values are added one by one."""

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
    """Return the profile of the answers, without storing them: there may be millions.

    names: the classes, each of which gets a count; of: description of the images.
    """
    labels = dict.fromkeys(names, 0)
    confidence, ood_score = Counts(CONFIDENCE_EDGES), Counts(OOD_EDGES)
    review = 0
    reasons: Counter[str] = Counter()
    for answer in answers:
        labels[answer.label] += 1
        confidence.add(answer.confidence)
        ood_score.add(answer.ood_score)
        review += answer.review
        reasons.update(answer.reasons)
    return AnswerProfile(
        of=of,
        n=sum(labels.values()),
        labels=labels,
        review=review,
        confidence=confidence.histogram(),
        ood_score=ood_score.histogram(),
        reasons=dict(reasons),
    )


def dump(profile: AnswerProfile) -> dict[str, Any]:
    """Return a JSON-ready table, which `parse` reads; means are rounded to 4 digits."""
    return {
        "of": profile.of,
        "n": profile.n,
        "labels": dict(profile.labels),
        "review": profile.review,
        "confidence": _dump(profile.confidence),
        "ood_score": _dump(profile.ood_score),
    } | ({} if profile.reasons is None else {"reasons": dict(profile.reasons)})


def parse(table: object, names: Sequence[str] | None = None) -> AnswerProfile:
    """Read what `dump` returned. Raise BundleError, which names every invalid value.

    names: the classes that it must have, in this order; None: those that it has.
    """
    try:
        profile = _Profile.model_validate(table)
    except ValidationError as error:
        raise BundleError(f"{INVALID}: {explain(error.errors())}") from error
    names = [*profile.labels] if names is None else names
    if missing := [name for name in names if name not in profile.labels]:
        raise BundleError(f"{INVALID}: no count of {', '.join(missing)}")
    labels = {name: profile.labels[name] for name in names}
    histograms = (profile.confidence, profile.ood_score)
    sums = {sum(labels.values()), *(sum(histogram.counts) for histogram in histograms)}
    if sums != {profile.n} or profile.review > profile.n or _exceed(profile.reasons, profile.review):
        raise BundleError(f"{INVALID}: its counts do not match n, {profile.n}")
    confidence, ood_score = (Histogram(h.edges, h.counts, h.mean) for h in histograms)
    return AnswerProfile(
        profile.of, profile.n, labels, profile.review, confidence, ood_score, profile.reasons
    )


def _exceed(reasons: Mapping[str, int] | None, review: int) -> bool:
    return any(count > review for count in (reasons or {}).values())


def _dump(histogram: Histogram) -> dict[str, Any]:
    return {
        "mean": round(histogram.mean, 4),
        "edges": list(histogram.edges),
        "counts": list(histogram.counts),
    }
