"""Drift: the answers in audit logs compared with a reference profile."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from app.engine.classifier import REASONS
from app.errors import BundleError, Unusable
from app.evaluation.answer_profile import AnswerProfile, Histogram, Seen, parse
from app.evaluation.distributions import chi_square_quantile
from app.units import MIB

SHIFTED = 0.1  # stability index above which a measure is "shifted"; credit scoring convention (Siddiqi 2006)
DRIFTED = 0.25  # likewise "drifted"
CHANCE = 0.001  # rate of false alarms allowed per measure
VERDICTS = ("stable", "shifted", "drifted")
RETRY_S = 180  # longest time between the lines of one request that was sent again
MOST_LINE = 4 * MIB  # bytes; a line of 256 images, the default limit, has 80 kB
MOST_SCORE = 1e9  # of ood_score; a sum of larger ones might be infinite
NO_REQUEST = {"summary", "lost"}  # fields of lines that only count requests


@dataclass
class Window:
    """The answers of a period, read from audit logs; the counters say what was skipped.

    since, until: start (inclusive) and end (exclusive) of the period; model_sha256: only answers of this
    model count; labels: those that it has, None if any may occur. A request that a proxy sent to two replicas
    is in the logs of both and counts once: the lines have the same id and images and are at most RETRY_S
    apart. Else they are requests of their own, since a client may send one id with all its requests.
    """

    since: datetime | None = None
    until: datetime | None = None
    model_sha256: str | None = None
    labels: Collection[str] | None = None
    other_models: int = 0  # answers of other models
    repeated: int = 0  # answers whose request was already counted
    # Lines truncated by a full disk (the log repeats those), over MOST_LINE, not UTF-8, or written by older
    # versions.
    broken: int = 0
    # The moment of each request, in seconds, by its digest; 140 bytes each.
    _requests: dict[bytes, float] = field(default_factory=dict, repr=False)

    def read(self, paths: Sequence[Path]) -> Iterator[Seen]:
        """Yield the answers in the audit logs `paths`, plain or .gz.

        Raise Unusable if a file cannot be read or has no line of a request.
        """
        for path in paths:
            lines, broken = 0, self.broken
            try:
                with _open(path) as file:
                    for line in _lines(file):
                        lines += 1
                        if line is None:
                            self.broken += 1
                        else:
                            yield from self._answers(line)
            except (OSError, EOFError, zlib.error) as error:
                raise Unusable(f"{path} cannot be read: {error}") from None
            if lines and self.broken - broken == lines:
                raise Unusable(
                    f"{path} is not an audit log: none of its {lines} lines is the entry of a request"
                )

    def _answers(self, line: bytes) -> list[Seen]:
        try:
            entry = json.loads(line.decode())
            if NO_REQUEST & entry.keys():
                return []
            moment, images = _moment(entry["time"]), entry.get("images", ())
            answers = [_seen(image) for image in images if "label" in image]
            request, model = _digest(entry["request_id"], images), entry.get("model_sha256")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            self.broken += 1
            return []
        if not answers or not self._includes(moment):
            return []
        if self.model_sha256 not in (None, model):
            self.other_models += len(answers)
            return []
        if self.labels is not None and any(answer.label not in self.labels for answer in answers):
            self.broken += 1
            return []
        if self._is_repeated(request, moment.timestamp()):
            self.repeated += len(answers)
            return []
        return answers

    def _is_repeated(self, request: bytes, moment: float) -> bool:
        """Return whether the request was counted within RETRY_S of the moment; count it if not.

        Two moments that were counted lie over RETRY_S apart, so a span of this length has one at most.
        """
        span = int(moment // RETRY_S)
        spans = [request + number.to_bytes(8, signed=True) for number in (span - 1, span, span + 1)]
        if any(abs(self._requests.get(each, -math.inf) - moment) <= RETRY_S for each in spans):
            return True
        self._requests[spans[1]] = moment
        return False

    def _includes(self, moment: datetime) -> bool:
        return (self.since is None or self.since <= moment) and (self.until is None or moment < self.until)


@dataclass(frozen=True)
class Shift:
    """How far one measure is from the reference.

    reference, found: mean or share of the measure in the reference and in the window; index: population
    stability index, Σ (p − q) ln (p / q) over classes or bins; chance: the value that the index exceeds in a
    fraction CHANCE of windows of this size if nothing has changed.
    """

    measure: str
    reference: float | None  # None for all classes together
    found: float | None
    index: float
    chance: float

    @property
    def verdict(self) -> str:
        if self.index <= max(SHIFTED, self.chance):
            return "stable"
        return "shifted" if self.index <= max(DRIFTED, self.chance) else "drifted"


def compare(reference: AnswerProfile, window: AnswerProfile) -> list[Shift]:
    """Return the shifts of each class, all classes together, confidence, ood_score and review share.

    Also of each reason for review, if the reference has their counts.
    """
    old, new = reference.labels, window.labels
    before, after = reference.reasons or {}, window.reasons or {}
    reasons = sorted(before.keys() | after.keys()) if reference.reasons is not None else []
    return [
        *(
            _shift(f"share of {name}", reference.share(name), window.share(name), *_split(old, new, name))
            for name in old
        ),
        _shift("all classes", None, None, [*old.values()], [new[name] for name in old]),
        _histogram_shift("confidence", reference.confidence, window.confidence),
        _histogram_shift("ood_score", reference.ood_score, window.ood_score),
        _part_shift("review share", reference.review, reference.n, window.review, window.n),
        *(
            _part_shift(f"review: {name}", before.get(name, 0), reference.n, after.get(name, 0), window.n)
            for name in reasons
        ),
    ]


def worst(shifts: Iterable[Shift]) -> str:
    """Return the most severe verdict."""
    return max((shift.verdict for shift in shifts), key=VERDICTS.index)


def stability_index(expected: Sequence[int], observed: Sequence[int]) -> float:
    """Return the population stability index of counts; 0.5 is added to each bin to keep it finite."""
    q, p = _shares(expected), _shares(observed)
    return sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))


def chance(bins: int, expected: int, observed: int) -> float:
    """Return the index exceeded with probability CHANCE by samples of n and m images if nothing has changed.

    The index is then distributed as about (1/n + 1/m) χ²(bins − 1) (Yurdakul 2018).
    """
    return chi_square_quantile(CHANCE, bins - 1) * (1 / expected + 1 / observed)


def read_reference(path: Path) -> AnswerProfile:
    """Read a profile that `leuko drift --save` wrote. Raise BundleError."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from None


def check_labels(reference: AnswerProfile, labels: Collection[str]) -> None:
    """Raise BundleError if a reference has other classes than a model: their shares cannot be compared."""
    if {*reference.labels} != {*labels}:
        raise BundleError(
            f"the drift reference has the classes {', '.join(reference.labels)}, the model"
            f" {', '.join(labels)}: save a reference of this model with `leuko drift --save`, or set none"
        )


def _split(old: Mapping[str, int], new: Mapping[str, int], name: str) -> tuple[list[int], list[int]]:
    return [old[name], sum(old.values()) - old[name]], [new[name], sum(new.values()) - new[name]]


def _histogram_shift(measure: str, reference: Histogram, window: Histogram) -> Shift:
    return _shift(measure, reference.mean, window.mean, reference.counts, window.counts)


def _part_shift(measure: str, old: int, old_n: int, new: int, new_n: int) -> Shift:
    return _shift(measure, old / old_n, new / new_n, [old, old_n - old], [new, new_n - new])


def _shift(
    measure: str,
    reference: float | None,
    found: float | None,
    expected: Sequence[int],
    observed: Sequence[int],
) -> Shift:
    index = stability_index(expected, observed)
    return Shift(measure, reference, found, index, chance(len(expected), sum(expected), sum(observed)))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + len(counts) / 2
    return [(count + 0.5) / total for count in counts]


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield the lines that are not blank; None for each over MOST_LINE. A small .gz may hold gigabytes."""
    begun, too_long = b"", False
    while chunk := file.read(MIB):
        end, *lines = chunk.split(b"\n")
        begun += end
        if len(begun) > MOST_LINE:
            begun, too_long = b"", True
        if lines:
            yield from _line(begun, too_long)
            yield from filter(bytes.strip, lines[:-1])
            begun, too_long = lines[-1], False
    yield from _line(begun, too_long)


def _line(line: bytes, too_long: bool) -> list[bytes | None]:
    return [None] if too_long else [line] if line.strip() else []


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"the time {text} has no time zone")
    return moment


def _digest(request_id: str, images: Sequence[Mapping[str, Any]]) -> bytes:
    """Return 16 bytes that stand for a request: for its id and the hashes of its images."""
    parts = [request_id, *(str(image.get("sha256")) for image in images)]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


def _seen(image: Mapping[str, Any]) -> Seen:
    label, confidence, ood_score, review = (
        image[name] for name in ("label", "confidence", "ood_score", "review")
    )
    numbers = all(isinstance(value, int | float) for value in (confidence, ood_score))
    if not numbers or not 0 <= confidence <= 1 or not abs(ood_score) <= MOST_SCORE:
        raise ValueError(f"not a valid answer: {image}")
    reasons = image.get("review_reasons", [])  # versions before 0.2 wrote none
    if not isinstance(label, str) or not isinstance(review, bool) or not set(reasons) <= set(REASONS):
        raise ValueError(f"not a valid answer: {image}")
    return Seen(label, float(confidence), float(ood_score), review, tuple(reasons))
