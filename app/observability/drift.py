"""The answers of a while, as the audit log has them, held against a reference."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from app.engine.bundle import CLASSES
from app.errors import BundleError, Unusable
from app.evaluation.answer_profile import AnswerProfile, Histogram, Seen, parse

SHIFTED = 0.1  # of a stability index, by the convention of credit scoring (Siddiqi 2006)
DRIFTED = 0.25
CHANCE = 0.001  # how often a shift may be named where there is none
VERDICTS = ("stable", "shifted", "drifted")


@dataclass
class Window:
    """since, until: the first moment within and the first after it; model_sha256: whose answers count.

    A request that a proxy gave to two replicas is in the logs of both, and counts once.
    """

    since: datetime | None = None
    until: datetime | None = None
    model_sha256: str | None = None
    other_models: int = 0  # answers that were not counted for that
    repeated: int = 0  # answers whose request was counted before
    broken: int = 0  # lines that a full disk cut short (the log writes those again), and of older versions
    _requests: set[str] = field(default_factory=set, repr=False)  # ids: 125 bytes each

    def read(self, paths: Sequence[Path]) -> Iterator[Seen]:
        """The answers of the audit logs `paths`, plain or .gz. Raises Unusable for what is no audit log."""
        for path in paths:
            lines, broken = 0, self.broken
            try:
                with _open(path) as file:
                    for line in filter(str.strip, file):
                        lines += 1
                        yield from self._answers(line)
            except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
                raise Unusable(f"{path} cannot be read: {error}") from None
            if lines and self.broken - broken == lines:
                raise Unusable(f"{path} is no audit log: none of its {lines} lines is one of a request")

    def _answers(self, line: str) -> list[Seen]:
        try:
            entry = json.loads(line)
            moment, images = _moment(entry["time"]), entry.get("images", ())
            found = [_seen(image) for image in images if "label" in image]
            request, model = str(entry["request_id"]), entry.get("model_sha256")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            self.broken += 1
            return []
        if not found or not self._holds(moment):
            return []
        if self.model_sha256 not in (None, model):
            self.other_models += len(found)
            return []
        if request in self._requests:
            self.repeated += len(found)
            return []
        self._requests.add(request)
        return found

    def _holds(self, moment: datetime) -> bool:
        return (self.since is None or self.since <= moment) and (self.until is None or moment < self.until)


@dataclass(frozen=True)
class Shift:
    """How far one measure went from the reference.

    index: population stability index, Σ (p − q) ln (p / q) over its classes or bins; chance: what it exceeds
    in CHANCE of all windows of this size where nothing has changed.
    """

    measure: str
    reference: float | None  # mean, or share; of all classes together there is neither
    found: float | None
    index: float
    chance: float

    @property
    def verdict(self) -> str:
        if self.index <= max(SHIFTED, self.chance):
            return "stable"
        return "shifted" if self.index <= max(DRIFTED, self.chance) else "drifted"


def compare(reference: AnswerProfile, found: AnswerProfile) -> list[Shift]:
    """Each class against all others, all classes together, confidence, distance and review."""
    old, new = reference.labels, found.labels
    return [
        *(
            _shift(f"share of {name}", reference.share(name), found.share(name), *_split(old, new, name))
            for name in old
        ),
        _shift("all classes", None, None, [*old.values()], [new[name] for name in old]),
        _of_means("confidence", reference.confidence, found.confidence),
        _of_means("ood_score", reference.ood_score, found.ood_score),
        _shift(
            "review share",
            reference.review_share,
            found.review_share,
            [reference.review, reference.n - reference.review],
            [found.review, found.n - found.review],
        ),
    ]


def worst(shifts: Iterable[Shift]) -> str:
    return max((shift.verdict for shift in shifts), key=VERDICTS.index)


def stability_index(expected: Sequence[int], found: Sequence[int]) -> float:
    """Of counts; half an image is added to each bin, so that an empty one does not make it infinite."""
    p, q = _shares(expected), _shares(found)
    return sum((a - b) * math.log(a / b) for a, b in zip(q, p, strict=True))


def chance(bins: int, expected: int, found: int) -> float:
    """The index is about χ²(bins − 1) times (1/n + 1/m) where nothing has changed (Yurdakul 2018)."""
    from scipy.special import chdtri

    return float(chdtri(bins - 1, CHANCE)) * (1 / expected + 1 / found)


def read_reference(path: Path) -> AnswerProfile:
    """What `leuko drift --save` wrote. Raises BundleError."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")), CLASSES)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from None


def _split(old: Mapping[str, int], new: Mapping[str, int], name: str) -> tuple[list[int], list[int]]:
    return [old[name], sum(old.values()) - old[name]], [new[name], sum(new.values()) - new[name]]


def _of_means(measure: str, reference: Histogram, found: Histogram) -> Shift:
    return _shift(measure, reference.mean, found.mean, reference.counts, found.counts)


def _shift(
    measure: str,
    reference: float | None,
    found: float | None,
    expected: Sequence[int],
    counted: Sequence[int],
) -> Shift:
    index = stability_index(expected, counted)
    return Shift(measure, reference, found, index, chance(len(expected), sum(expected), sum(counted)))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + len(counts) / 2
    return [(count + 0.5) / total for count in counts]


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text} is a time of nowhere")
    return found


def _seen(image: Mapping[str, Any]) -> Seen:
    label, confidence, ood_score = image["label"], float(image["confidence"]), float(image["ood_score"])
    if label not in CLASSES or not math.isfinite(confidence) or not math.isfinite(ood_score):
        raise ValueError(f"no answer: {image}")
    return Seen(label, confidence, ood_score, bool(image["review"]))
