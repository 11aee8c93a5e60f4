"""Types of a specimen and its differential count, as sent and returned."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo, field_validator

from app.engine.bundle import MAX_LABEL, MAX_LABELS
from app.wire.schemas import (
    Caution,
    EmptyImage,
    EmptyImages,
    ImageProblem,
    ModelReference,
    Probability,
    Reason,
)

MAX_CELLS = 10_000  # predictions in one request
MOST_FORMER = 8  # reports that a correction holds, each in the one that replaced it
# What a person may say of a cell beside the labels of the bundle.
UNIDENTIFIED = "unidentified"  # a leukocyte, but which? It is counted, in a row of its own
NOT_A_CELL = "not_a_cell"  # not counted


def _printable(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("must consist of printable characters and must not be blank")
    return text


_EMPTY_IS_ABSENT = BeforeValidator(lambda value: None if value == "" else value)  # a form has no null
Printable = Annotated[str, Field(max_length=128), AfterValidator(_printable)]
Identifier = Annotated[Printable | None, _EMPTY_IS_ABSENT]
# A resource on the receiver's server, or a search for it by an identifier, which only a transaction may hold.
_REFERENCE = re.compile(
    r"(?:https?://[^\s?#]+/)?(?P<kind>[A-Za-z]+)(?:/[A-Za-z0-9.-]{1,64}|\?identifier=[^\s&#]+)"
)
_DATE_TIME = re.compile(
    r"\d{4}(-\d{2}(-\d{2}(T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-](0\d|1[0-4]):\d{2}))?)?)?"
)  # https://hl7.org/fhir/R4/datatypes.html#dateTime


def _refers_to(*kinds: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        match = _REFERENCE.fullmatch(text)
        if match is None or match["kind"] not in kinds or not text.isprintable():
            one = (
                f"{kinds[0]}/17, https://fhir.example.org/{kinds[0]}/17 or {kinds[0]}?identifier=SYSTEM|VALUE"
            )
            raise ValueError(f"must refer to {' or '.join(kinds)} of FHIR, such as {one}")
        return text

    return check


def _date_time(text: str) -> str:
    try:
        if _DATE_TIME.fullmatch(text) is None:
            raise ValueError
        date, _, time = text.partition("T")
        datetime.fromisoformat(f"{date}{'0001-01-01'[len(date) :]}" + (f"T{time}" if time else ""))
    except ValueError:
        raise ValueError(
            "must be a date, month or year, or a time with its zone, such as 2026-11-30T08:15:00+01:00"
        ) from None
    return text


Subject = Annotated[
    Annotated[str, Field(max_length=512), AfterValidator(_refers_to("Patient"))] | None, _EMPTY_IS_ABSENT
]
Performer = Annotated[
    Annotated[
        str,
        Field(max_length=512),
        AfterValidator(_refers_to("Organization", "Practitioner", "PractitionerRole", "CareTeam")),
    ]
    | None,
    _EMPTY_IS_ABSENT,
]
DateTime = Annotated[
    Annotated[str, Field(max_length=64), AfterValidator(_date_time)] | None, _EMPTY_IS_ABSENT
]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Label = Annotated[str, Field(pattern="^[a-z][a-z0-9 _-]*$", max_length=MAX_LABEL)]
Status = Literal["preliminary", "final", "corrected"]


class Specimen(BaseModel):
    """The caller's identifiers of a specimen; returned unchanged, never stored."""

    specimen: Identifier = Field(None, description="identifier of the specimen")
    accession: Identifier = Field(None, description="accession number of the order")
    subject: Subject = Field(None, description="FHIR only: reference to the Patient")
    effectiveDateTime: DateTime = Field(  # noqa: N815 (FHIR's name)
        None, description="FHIR only: when the specimen was taken, a date or a date and time with its zone"
    )
    performer: Performer = Field(
        None, description="FHIR only: reference to the laboratory or person who answers for the report"
    )


class ClassifiedCell(BaseModel):
    """A prediction of `/predict`, or at least its label."""

    label: str
    confidence: Probability | None = None
    image_sha256: Sha256 | None = None
    cell: Annotated[int, Field(ge=0)] | None = None
    filename: str | None = None
    review_reasons: Annotated[list[Reason], Field(fail_fast=True)] = []
    reviewed: str | None = Field(
        default=None,
        description="what a person says of the cell, which is then counted instead of `label`: a label of the"
        " model, `unidentified` (counted in a row of its own) or `not_a_cell` (not counted)",
    )


class NamedModel(ModelReference):
    """The model that made predictions, as `/predict` names it."""

    name: Printable
    version: Printable
    sha256: Sha256


def _few(counts: Any) -> Any:
    """Refuse too many classes before each is looked at: pydantic keeps an error for every bad one."""
    if isinstance(counts, dict) and len(counts) > MAX_LABELS + 1:
        raise ValueError(f"must have at most {MAX_LABELS + 1} classes")
    return counts


class ChangedCell(BaseModel):
    """A cell to which a person gave another label than the model."""

    index: int = Field(description="position in the request, from 0")
    cell: int | None = Field(None, description="with `cells=all`: number of the cell in its image, from 0")
    filename: str | None = None
    image_sha256: Sha256 | None = None
    label: Label = Field(description="the model's")
    reviewed: Label = Field(description="the person's")


def _few_reports(former: Any) -> Any:
    """Refuse a report in which too many others are, one in the other, before any is looked at."""
    count, inner = 0, former
    while isinstance(inner, dict):
        count, inner = count + 1, inner.get("former")
        if count > MOST_FORMER:
            raise ValueError(
                f"holds more than {MOST_FORMER} reports, one in the other: leave out `former` of the earliest"
            )
    return former


def _check_former(former: FormerReport | None, info: ValidationInfo) -> FormerReport | None:
    """Refuse a former report that is not the one that `replaces` names, or that was never signed."""
    if former is None:
        return None
    replaces = info.data.get("replaces", former.fingerprint)
    if replaces is None:
        raise ValueError("replaces is missing: it must be the fingerprint of this report")
    if replaces != former.fingerprint:
        raise ValueError("must be the report whose fingerprint is in replaces")
    if former.status == "preliminary" or former.reviewer is None:
        raise ValueError("was not signed: leave out replaces and former, and this report is final")
    return former


class FormerReport(BaseModel):
    """A report that another one replaces: these fields of the former response, which may be sent whole."""

    fingerprint: Sha256
    status: Status
    reviewer: Printable | None
    counts: Annotated[
        dict[Label, Annotated[int, Field(ge=0)]], Field(max_length=MAX_LABELS + 1), BeforeValidator(_few)
    ]
    changes: list[ChangedCell] = Field(max_length=MAX_CELLS, fail_fast=True)
    replaces: Sha256 | None = Field(None, description="fingerprint of the report that this one replaced")
    former: Annotated[FormerReport | None, AfterValidator(_check_former)] = Field(
        None, description="that report, with the one that it replaced in turn, back to the first"
    )


class SignOff(BaseModel):
    """Who signs a report, and which former report it replaces."""

    reviewer: Printable | None = Field(
        default=None,
        description="name of the person who signs. The report is then `final`, unless cells that are marked"
        " for review lack `reviewed`",
    )
    replaces: Sha256 | None = Field(
        default=None,
        description="`fingerprint` of the signed report that this one corrects; needs `reviewer`. The report"
        " is then `corrected` instead of `final`",
    )
    former: Annotated[FormerReport | None, BeforeValidator(_few_reports), AfterValidator(_check_former)] = (
        Field(
            default=None,
            description="the response that `replaces` names, with its own `former`, so that the corrected"
            f" report holds all former values, of at most {MOST_FORMER} reports; without one of them,"
            " `warnings` has `former_values_missing`",
        )
    )

    @field_validator("replaces")
    @classmethod
    def _is_signed(cls, replaces: str | None, info: ValidationInfo) -> str | None:
        if replaces and info.data.get("reviewer", "wrong") is None:
            raise ValueError("needs a reviewer: a correction must be signed")
        return replaces


class ClassifiedCells(Specimen, SignOff):
    """A specimen, the predictions of its cells, and the images that could not be classified."""

    model: NamedModel | None = Field(
        None,
        description="`model` of the same `/predict` responses; without it, the report names the model that is"
        " loaded now, which may be another one",
    )
    predictions: list[ClassifiedCell] = Field(min_length=1, max_length=MAX_CELLS, fail_fast=True)
    errors: list[ImageProblem] = Field(
        [],
        max_length=MAX_CELLS,
        fail_fast=True,
        description="`errors` of the same `/predict` responses: every report says how many images it lacks",
    )
    empty: list[EmptyImage] = Field(
        [], max_length=MAX_CELLS, fail_fast=True, description="`empty` of the same `/predict` responses"
    )


def replaced_reports(report: SignOff | Differential) -> list[FormerReport]:
    """Return the reports before this one whose values it holds, the latest first."""
    reports, former = [], report.former
    while former is not None:
        reports.append(former)
        former = former.former
    return reports


Bounds = tuple[float, float] | None  # null without leukocytes


class Proportions(BaseModel):
    """Confidence intervals by class of leukocytes: lower and upper bound, in percent of the leukocytes."""

    level: float
    unit: Literal["percent"]
    wilson: dict[str, Bounds]
    exact: dict[str, Bounds] = Field(description="Clopper–Pearson intervals")


class Ratios(BaseModel):
    """Confidence intervals of the cells counted beside 100 leukocytes: lower and upper bound."""

    level: float
    unit: Literal["per 100 leukocytes"]
    wilson: dict[str, Bounds]
    exact: dict[str, Bounds]


class Agreement(BaseModel):
    """How far a person agreed with the model."""

    reviewed: int = Field(description="cells with `reviewed`")
    kept: int = Field(description="those of them that kept the model's label")


class ReviewedCell(BaseModel):
    """A cell that a person must look at, and that has no `reviewed` yet."""

    index: int = Field(description="position in the request, from 0")
    cell: int | None = Field(None, description="with `cells=all`: number of the cell in its image, from 0")
    filename: str | None
    image_sha256: str | None
    label: str
    confidence: Probability | None
    reasons: list[Reason]


class VerifiedSite(BaseModel):
    """The laboratory that a model was verified for; `GET /model` has the figures in `site`."""

    name: str
    verified_at: str = Field(description="ISO 8601")


class Differential(BaseModel):
    request_id: str
    model: ModelReference
    site: VerifiedSite | None = Field(
        None,
        description="laboratory that the model was verified for; null if it was not, as `warnings` then says,"
        " or if nothing is known of the model",
    )
    specimen: str | None
    accession: str | None
    subject: str | None = None
    effectiveDateTime: str | None = None  # noqa: N815 (FHIR's name)
    performer: str | None = None
    status: Status = Field(
        description="`preliminary`: not signed, or cells marked for review lack `reviewed`; `final`: signed;"
        " `corrected`: signed, and it replaces a former report"
    )
    reviewer: str | None = Field(None, description="who signed")
    replaces: Sha256 | None = Field(None, description="fingerprint of the former report")
    former: FormerReport | None = Field(
        None, description="the former report, if it was sent, with those before it"
    )
    fingerprint: Sha256 | None = Field(
        description="equal for the same images in any order, the same model and the same review; null if"
        " hashes are missing"
    )
    unreviewed_fingerprint: Sha256 | None = Field(
        description="the fingerprint that the report of these cells has without any review"
    )
    n: int = Field(description="number of counted cells, of every class")
    leukocytes: int = Field(
        description="those of `n` that are leukocytes: no erythroblasts, platelets, smudge cells, artefacts"
    )
    counts: dict[str, int] = Field(
        description="counted cells of each class, by `reviewed` where a cell has it; their sum is `n`. With a"
        " review, `unidentified` is a row too, and such cells are leukocytes"
    )
    model_counts: dict[str, int] = Field(description="all cells of each class by the model alone")
    not_a_cell: int = Field(description="what a person called no cell; not counted")
    agreement: Agreement
    changes: list[ChangedCell] = Field(
        description="the cells whose `reviewed` is not the model's label, with both labels"
    )
    percent: dict[str, float | None] = Field(
        description="percent of the leukocytes, for each class of these; null without any"
    )
    per_100_leukocytes: dict[str, float | None] = Field(
        description="cells per 100 leukocytes, for erythroblasts and smudge cells; null without leukocytes"
    )
    intervals: Proportions
    intervals_per_100_leukocytes: Ratios
    review: list[ReviewedCell]
    warnings: list[Caution]
    empty: EmptyImages = []
    errors: list[ImageProblem]
