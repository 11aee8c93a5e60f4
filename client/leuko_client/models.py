"""The documents that the service sends. Unknown fields are ignored; a missing field is an error."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from leuko_client.errors import UnexpectedAnswer

Document = TypeVar("Document")


@dataclass(frozen=True, slots=True)
class ModelReference:
    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of the image that was classified, in pixels of the upright image."""

    left: float
    top: float
    width: float
    height: float
    nucleus: bool


@dataclass(frozen=True, slots=True)
class ActivationMap:
    """Class activation map of the label over the frame: 0 to 1, row by row."""

    shape: tuple[int, int]
    values: list[list[float]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """review: a person must look at the cell. model: None only in a prediction that was made by hand.

    cell: its number in its image, in reading order, if all cells were asked for. reviewed: what a person says
    of the cell, for a differential: a label of the model, `unidentified` or `not_a_cell`; set it with
    `dataclasses.replace`.
    """

    index: int
    filename: str | None
    image_sha256: str
    label: str
    confidence: float
    probabilities: dict[str, float]
    ood_score: float
    review: bool
    review_reasons: list[str]
    frame: Frame
    cam: ActivationMap | None = None
    model: ModelReference | None = None  # that made it
    cell: int | None = None
    reviewed: str | None = None


@dataclass(frozen=True, slots=True)
class ImageProblem:
    status: int
    code: str
    title: str
    detail: str
    index: int
    filename: str | None


@dataclass(frozen=True, slots=True)
class EmptyImage:
    """An image in which no leukocyte was found."""

    index: int
    filename: str | None


@dataclass(frozen=True, slots=True)
class Predictions:
    request_id: str
    model: ModelReference
    predictions: list[Prediction]
    errors: list[ImageProblem]
    empty: list[EmptyImage] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Proportions:
    """Intervals by class, in percent or per 100 leukocytes. level: of confidence. None: no leukocytes."""

    level: float
    wilson: dict[str, tuple[float, float] | None]
    exact: dict[str, tuple[float, float] | None]


@dataclass(frozen=True, slots=True)
class ReviewedCell:
    index: int
    filename: str | None
    image_sha256: str | None
    label: str
    confidence: float | None
    reasons: list[str]
    cell: int | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """reviewed: cells that a person labelled; kept: those of them that kept the model's label."""

    reviewed: int
    kept: int


@dataclass(frozen=True, slots=True)
class ChangedCell:
    """A cell to which a person gave another label than the model."""

    index: int
    label: str
    reviewed: str
    filename: str | None = None
    image_sha256: str | None = None
    cell: int | None = None


@dataclass(frozen=True, slots=True)
class FormerReport:
    """The report that a corrected one replaces, with the one that it replaced itself."""

    fingerprint: str
    status: str
    reviewer: str | None
    counts: dict[str, int]
    changes: list[ChangedCell]
    replaces: str | None = None
    former: FormerReport | None = None


@dataclass(frozen=True, slots=True)
class Warning:
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class VerifiedSite:
    """The laboratory that a model was verified for."""

    name: str
    verified_at: str


@dataclass(frozen=True, slots=True)
class Differential:
    """n: the counted cells, the sum of counts; percent: of the leukocytes among them, None without any.

    per_100_leukocytes: erythroblasts and smudge cells. leukocytes and these are absent in older services, as
    is all from status on. site: None if the model was not verified, as `warnings` then says, or if that is
    unknown. status: preliminary, final or corrected. model_counts: of all cells, by the model alone.
    """

    request_id: str
    model: ModelReference
    specimen: str | None
    accession: str | None
    fingerprint: str | None
    n: int
    counts: dict[str, int]
    percent: dict[str, float | None]
    intervals: Proportions
    review: list[ReviewedCell]
    warnings: list[Warning]
    errors: list[ImageProblem]
    leukocytes: int | None = None
    per_100_leukocytes: dict[str, float | None] = field(default_factory=dict)
    intervals_per_100_leukocytes: Proportions | None = None
    site: VerifiedSite | None = None
    empty: list[EmptyImage] = field(default_factory=list)
    status: str | None = None
    reviewer: str | None = None
    replaces: str | None = None
    former: FormerReport | None = None
    unreviewed_fingerprint: str | None = None
    model_counts: dict[str, int] = field(default_factory=dict)
    not_a_cell: int = 0
    agreement: Agreement | None = None
    changes: list[ChangedCell] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ClassScores:
    precision: float | None
    recall: float | None
    f1: float | None
    specificity: float | None
    support: int


@dataclass(frozen=True, slots=True)
class Average:
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True, slots=True)
class Intervals:
    level: float
    unit: str
    accuracy: tuple[float, float]
    macro_f1: tuple[float, float]


@dataclass(frozen=True, slots=True)
class GroupScores:
    n: int
    accuracy: float
    correct: int


@dataclass(frozen=True, slots=True)
class Report:
    """confusion_matrix: rows are true classes. mse, rmse: of class indices. None: undefined."""

    request_id: str
    n: int
    labels: list[str]
    accuracy: float
    per_class: dict[str, ClassScores]
    macro_avg: Average
    weighted_avg: Average
    mse: float
    rmse: float
    confusion_matrix: list[list[int]]
    balanced_accuracy: float | None
    cohen_kappa: float | None
    matthews_corrcoef: float | None
    log_loss: float | None
    brier: float | None
    ece: float | None
    roc_auc_ovr: float | None
    confidence_intervals: Intervals
    groups: GroupScores | None


@dataclass(frozen=True, slots=True)
class Mistake:
    filename: str
    label: str
    predicted: str
    confidence: float


@dataclass(frozen=True, slots=True)
class FamiliarThresholds:
    """Thresholds for pictures that look like those of a laboratory that the model was trained on."""

    distance: float
    confidence: float
    ood_score: float


@dataclass(frozen=True, slots=True)
class ReviewThresholds:
    confidence: float
    ood_score: float
    familiar: FamiliarThresholds | None = None  # None: the same thresholds for all pictures


@dataclass(frozen=True, slots=True)
class Marks:
    """What thresholds do to the cells: the share sent to review, and how much of the rest is right.

    familiar: thresholds of pictures that look like the model's training pictures; None: the same.
    others_marked: share of the bundle's reference cells of no class that the OOD score sends to review.
    """

    thresholds: ReviewThresholds
    review_share: float
    right_when_kept: float | None
    familiar: ReviewThresholds | None = None
    others_marked: float | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept from some confidence on: share of all cells, and of the kept ones that are right."""

    confidence: float
    kept: float
    right: float


@dataclass(frozen=True, slots=True)
class Verification:
    """The model on a laboratory's own cells. proposed: None if no thresholds reach the target.

    interval: None if no class is of two patients or slides. familiar_cells: how many cells have the
    thresholds of familiar pictures; None if the bundle has no others for them.
    """

    cells: int
    groups: int | None
    by_class: dict[str, int]
    balanced_accuracy: float
    level: float
    unit: str
    interval: tuple[float, float] | None
    target: float
    current: Marks
    proposed: Marks | None
    curve: list[Kept]
    warnings: list[str]
    chosen: Marks | None = None
    familiar_cells: int | None = None


@dataclass(frozen=True, slots=True)
class Evaluation(Report):
    model: ModelReference
    verification: Verification
    elapsed_seconds: float
    images_per_second: float
    misclassified: list[Mistake]
    errors: list[ImageProblem]
    warnings: list[Warning] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Progress:
    done: int
    total: int
    images_per_second: float


@dataclass(frozen=True, slots=True)
class Limits:
    max_body_mib: int
    max_image_mib: int
    max_pixels: int
    max_side: int
    max_files: int
    max_archive_entries: int
    deadline_s: float
    evaluate_deadline_s: float
    max_cells: int = 1  # with cells="all"; services that lack it have one


@dataclass(frozen=True, slots=True)
class Site:
    """The verification of a bundle in one laboratory."""

    name: str
    verified_at: str
    cells: int
    balanced_accuracy: float
    interval: tuple[float, float] | None
    review_share: float
    right_when_kept: float | None
    adapted: bool
    parent_sha256: str


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    version: str
    sha256: str
    labels: list[str]
    preprocessing: dict[str, Any]
    temperature: float
    review: ReviewThresholds
    training: dict[str, Any]
    scores: dict[str, Any]
    engine: str
    device: str
    service_version: str
    limits: Limits
    site: Site | None = None  # None: not verified for a laboratory
    codes: dict[str, str | None] | None = None  # label → LOINC code; None: an older service


def build(kind: type[Document], value: object) -> Document:
    """Convert parsed JSON. Raise UnexpectedAnswer, naming the field that does not fit."""
    document: Document = _build(kind, value, kind.__name__)
    return document


def _build(kind: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _build(inner[0], value, where)
    if is_dataclass(kind):
        return _build_dataclass(kind, _expect(Mapping, value, where), where)
    if origin is dict:
        return {key: _build(inner[1], entry, where) for key, entry in _expect(Mapping, value, where).items()}
    if origin is list:
        return [_build(inner[0], element, where) for element in _expect(list, value, where)]
    if origin is tuple:
        if len(_expect(list, value, where)) != len(inner):
            raise UnexpectedAnswer(f"{where} has {len(value)} elements, expected {len(inner)}")
        return tuple(_build(part, element, where) for part, element in zip(inner, value, strict=True))
    if kind is float:
        return float(_expect((int, float), value, where))
    return _expect(kind, value, where)


def _build_dataclass(kind: Any, value: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    values = {}
    for part in fields(kind):
        if part.name in value:
            values[part.name] = _build(hints[part.name], value[part.name], f"{where}.{part.name}")
        elif part.default is part.default_factory is MISSING:
            raise UnexpectedAnswer(f"{where} lacks {part.name}")
    return kind(**values)


def _expect(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = "number" if isinstance(kind, tuple) else kind.__name__
        raise UnexpectedAnswer(f"{where} has type {type(value).__name__}, expected {expected}")
    return value
