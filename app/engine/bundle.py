"""Read and verify a model bundle: its configuration against a schema, its files against their hashes.

A bundle is a folder. `config.json` has the sha256 of every other file that is used at run time, so the
sha256 of `config.json` itself identifies the whole bundle. Weights are never pickled.
"""

from __future__ import annotations

import hashlib
import re
import reprlib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
)

from app.errors import BundleError
from app.evaluation.answer_profile import AnswerProfile, parse
from app.evaluation.review_thresholds import Rules, Thresholds
from app.imaging.framing import Preprocessing
from app.imaging.quality import QualityLimits
from app.validation import explain

FORMAT = 2
CONFIG = "config.json"
WEIGHTS, GRAPH, OOD, KNOWN_ANSWER = (
    "model.safetensors",
    "model.int8.onnx",
    "ood.safetensors",
    "known-answer.png",
)
FILES = (WEIGHTS, GRAPH, OOD, KNOWN_ANSWER)
MAX_SITE = 128  # characters of a laboratory's name
INVALID = "is not a valid bundle configuration"
CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")  # of the shipped bundle and the samples
MIN_LABELS, MAX_LABELS = 2, 32
MAX_LABEL = 64  # characters
RESERVED = ("unidentified", "not_a_cell")  # what a person may call a cell that is of no class

_LABEL = re.compile(r"[a-z][a-z0-9 _-]*(?<! )")
_LOINC = re.compile(r"[0-9]{1,7}-[0-9]")


@dataclass(frozen=True)
class SiteRecord:
    """The verification of a bundle in one laboratory; the fields of `site` in `GET /model`."""

    name: str
    verified_at: str  # ISO 8601
    cells: int
    balanced_accuracy: float
    interval: tuple[float, float] | None  # 95 %, of the balanced accuracy; None if the cells show none
    review_share: float
    right_when_kept: float | None
    adapted: bool  # whether the weights were adapted to the laboratory
    parent_sha256: str  # of the bundle that was verified or adapted


@dataclass(frozen=True)
class FamiliarRule:
    """Thresholds for pictures that look like those of a laboratory that the model was trained on.

    distance: at most this far from the nearest laboratory's pictures (`app.engine.laboratories.Styles`).
    """

    distance: float
    confidence: float
    ood_score: float

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(self.confidence, self.ood_score)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    path: Path
    sha256: str  # of config.json, which identifies the whole bundle
    name: str
    version: str
    labels: tuple[str, ...]  # in the order of the logits
    preprocessing: Preprocessing
    temperature: float  # logits are divided by it
    review_confidence: float  # cells with a lower confidence go to review
    review_ood_score: float  # cells with a higher OOD score go to review
    known_answer: tuple[float, ...]  # probabilities of known-answer.png
    files: Mapping[str, str]  # name → sha256
    training: Mapping[str, Any]  # recipe and data
    scores: Mapping[str, Any]  # test set → figures
    reference: AnswerProfile | None = None  # of the answers on the test set; older bundles have none
    quality_limits: QualityLimits | None = None  # pictures beyond them go to review; older bundles have none
    site: SiteRecord | None = None  # None: not verified for a laboratory
    familiar: FamiliarRule | None = None  # None: the same thresholds for all pictures
    codes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # label → method → LOINC code

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(self.review_confidence, self.review_ood_score)

    @property
    def rules(self) -> Rules:
        return Rules(self.thresholds, self.familiar.thresholds if self.familiar else None)


def load_bundle(path: Path) -> Bundle:
    """Read the bundle in the folder `path`.

    Raises BundleError, which names the file, if a file is missing, altered or invalid.
    """
    raw = _read(path / CONFIG)
    config = _parse(raw, path / CONFIG)
    _verify(path, config.files)
    return Bundle(
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
        name=config.name,
        version=config.version,
        labels=config.labels,
        preprocessing=Preprocessing(**config.preprocessing.model_dump()),
        temperature=config.temperature,
        review_confidence=config.review.confidence,
        review_ood_score=config.review.ood_score,
        quality_limits=QualityLimits(**config.review.quality.model_dump()) if config.review.quality else None,
        known_answer=config.known_answer,
        files=config.files,
        training=config.training,
        scores=config.scores,
        reference=config.reference,
        site=SiteRecord(**config.site.model_dump()) if config.site else None,
        familiar=FamiliarRule(**config.review.familiar.model_dump()) if config.review.familiar else None,
        codes={
            label: {str(method): code for method, code in by_method.items()}
            for label, by_method in config.codes.items()
        },
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error


def _verify(path: Path, files: Mapping[str, str]) -> None:
    for name, expected in files.items():
        sha256 = _hash(path / name)
        if sha256 != expected:
            raise BundleError(f"{path / name} has sha256 {sha256}, {CONFIG} says {expected}: it was changed")


def _check_format(value: int) -> int:
    if value != FORMAT:
        raise ValueError(f"must be {FORMAT}, not {value}: use a matching version of Leuko")
    return value


def check_labels(labels: object) -> tuple[str, ...]:
    """Return the labels of a bundle, a list or tuple. Raise ValueError, which says what is allowed."""
    if not isinstance(labels, list | tuple) or not MIN_LABELS <= len(labels) <= MAX_LABELS:
        raise ValueError(
            f"must be a list of {MIN_LABELS} to {MAX_LABELS} class names, not {reprlib.repr(labels)}"
        )
    for label in labels:
        if not isinstance(label, str) or len(label) > MAX_LABEL or not _LABEL.fullmatch(label):
            raise ValueError(
                f"must have names of at most {MAX_LABEL} characters that begin with a small letter and have"
                f" small letters, digits, blanks, _ and - (no blank at the end), not {reprlib.repr(label)}"
            )
        if label in RESERVED:
            raise ValueError(f"must not have the name {label!r}, which means that a cell is of no class")
    if repeated := [label for label in dict.fromkeys(labels) if labels.count(label) > 1]:
        raise ValueError(f"must have each name once, but repeat {', '.join(repeated)}")
    return tuple(labels)


def _check_known_answer(value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
    labels = info.data.get("labels")  # None if they are invalid, which is an error of its own
    if labels is not None and len(value) != len(labels):
        raise ValueError(f"must have one probability for each label ({len(labels)}), not {len(value)}")
    return value


def check_code(code: str) -> str:
    """Return a LOINC code. Raise ValueError for one of another form or with a wrong check digit.

    The last digit is that of Luhn's algorithm (LOINC Users' Guide, "Calculating Mod 10 Check Digits").
    """
    digits = [int(digit) for digit in code.replace("-", "")] if _LOINC.fullmatch(code) else [1]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    if (sum(digits[-1::-2]) + sum(doubled)) % 10:
        raise ValueError(
            f"must be a LOINC code with its check digit, such as 30180-4, not {reprlib.repr(code)}"
        )
    return code


def _check_codes(value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    labels = info.data.get("labels")
    if labels is not None and (others := [label for label in value if label not in labels]):
        raise ValueError(f"must have only codes of the bundle's labels, not of {reprlib.repr(others)}")
    uses = Counter(code for by_method in value.values() for code in {*by_method.values()})
    if shared := [code for code, labels_of_it in uses.items() if labels_of_it > 1]:
        raise ValueError(f"must not give one code to two labels: {', '.join(shared)}")
    return value


def _check_files(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if Path(name).name != name or "\0" in name:
            raise ValueError(f"must not name a file outside the bundle: {name!r}")
    if missing := [name for name in FILES if name not in value]:
        raise ValueError(f"must have the sha256 of {', '.join(missing)}")
    return value


def _check_time(value: str) -> str:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("must be a time in ISO 8601, such as 2026-11-30T09:00:00+00:00") from None
    return value


def _parse_reference(value: Any, info: ValidationInfo) -> AnswerProfile:
    try:
        return parse(value, info.data.get("labels"))
    except (BundleError, OverflowError) as error:
        raise ValueError(f"is invalid: {error}") from error


Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Method = Literal["none", "manual", "automated"]  # of counting, which LOINC tells apart
LoincCode = Annotated[str, AfterValidator(check_code)]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Preprocessing(_Table, extra="forbid"):
    """The fields of `Preprocessing`, all of them required."""

    size: Annotated[int, Field(ge=32, le=512)]  # ResNet18 halves it five times
    framing: Literal["nucleus", "whole"]
    margin: Positive
    white_point: bool
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]


class _QualityLimits(_Table, extra="forbid"):
    """The fields of `QualityLimits`, all of them required but those of later versions."""

    nuclear_contrast: float
    grain: float
    cut: float
    detail: float
    brightness: float
    brightness_range: float
    leukocytes: Annotated[int, Field(ge=1)] = 1
    outside: Annotated[float, Field(ge=0)] = QualityLimits.outside


class _Familiar(_Table, extra="forbid"):
    """The fields of `FamiliarRule`."""

    distance: Positive
    confidence: float
    ood_score: float


class _Review(_Table):
    confidence: float
    ood_score: float
    quality: _QualityLimits | None = None
    familiar: _Familiar | None = None


class _Site(_Table, extra="forbid"):
    """The fields of `SiteRecord`."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_SITE)]
    verified_at: Annotated[str, AfterValidator(_check_time)]
    cells: Annotated[int, Field(ge=1)]
    balanced_accuracy: Probability
    interval: tuple[Probability, Probability] | None
    review_share: Probability
    right_when_kept: Probability | None
    adapted: bool
    parent_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Files(_Table):
    files: Annotated[dict[str, str], AfterValidator(_check_files)]


class _Config(_Files):
    """The parts of `config.json` that are read here; others are ignored."""

    format: Annotated[int, AfterValidator(_check_format)]
    name: str
    version: str
    labels: Annotated[tuple[str, ...], PlainValidator(check_labels)]
    preprocessing: _Preprocessing
    temperature: Positive
    review: _Review
    known_answer: Annotated[tuple[Probability, ...], AfterValidator(_check_known_answer)]
    training: dict[str, Any]
    scores: dict[str, Any]
    reference: Annotated[AnswerProfile | None, PlainValidator(_parse_reference)] = None
    site: _Site | None = None
    codes: Annotated[dict[str, dict[Method, LoincCode]], AfterValidator(_check_codes)] = {}


def _parse(raw: bytes, path: Path) -> _Config:
    """Raise one BundleError for all invalid fields."""
    try:
        return _Config.model_validate_json(raw.removeprefix(BOM_UTF8))
    except ValidationError as error:
        errors = error.errors()
        # The fields of another format are unknown here.
        errors = [item for item in errors if item["loc"] == ("format",) and "ctx" in item] or errors
        raise BundleError(f"{path} {INVALID}: {explain(errors)}") from error


def parse_files(raw: bytes, origin: str) -> dict[str, str]:
    """Return the sha256 of each file that a `config.json` lists. Raise BundleError."""
    try:
        return _Files.model_validate_json(raw.removeprefix(BOM_UTF8)).files
    except ValidationError as error:
        raise BundleError(f"{origin} {INVALID}: {explain(error.errors())}") from error
