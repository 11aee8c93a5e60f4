"""Types of a specimen and its differential count, as sent and returned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from app.wire.schemas import Caution, ImageProblem, ModelReference, Probability, Reason

MAX_CELLS = 10_000  # predictions in one request


def _printable(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("must consist of printable characters and must not be blank")
    return text


Identifier = Annotated[
    Annotated[str, Field(max_length=128), AfterValidator(_printable)] | None,
    BeforeValidator(lambda value: None if value == "" else value),
]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Specimen(BaseModel):
    """The caller's identifiers of a specimen; returned unchanged, never stored."""

    specimen: Identifier = Field(None, description="identifier of the specimen")
    accession: Identifier = Field(None, description="accession number of the order")


class ClassifiedCell(BaseModel):
    """A prediction of `/predict`, or at least its label."""

    label: str
    confidence: Probability | None = None
    image_sha256: Sha256 | None = None
    filename: str | None = None
    review_reasons: Annotated[list[Reason], Field(fail_fast=True)] = []


class ClassifiedCells(Specimen):
    """A specimen, the predictions of its cells, and the images that could not be classified."""

    predictions: list[ClassifiedCell] = Field(min_length=1, max_length=MAX_CELLS, fail_fast=True)
    errors: list[ImageProblem] = Field(
        [],
        max_length=MAX_CELLS,
        fail_fast=True,
        description="`errors` of the same `/predict` responses: every report says how many images it lacks",
    )


class Proportions(BaseModel):
    """Confidence intervals by class: lower and upper bound, in percent."""

    level: float
    unit: Literal["percent"]
    wilson: dict[str, tuple[float, float]]
    exact: dict[str, tuple[float, float]] = Field(description="Clopper–Pearson intervals")


class ReviewedCell(BaseModel):
    """A cell that a person must look at."""

    index: int = Field(description="position in the request, from 0")
    filename: str | None
    image_sha256: str | None
    label: str
    confidence: Probability | None
    reasons: list[Reason]


class Differential(BaseModel):
    request_id: str
    model: ModelReference
    specimen: str | None
    accession: str | None
    fingerprint: Sha256 | None = Field(
        description="equal for the same images in any order and the same model; null if hashes are missing"
    )
    n: int = Field(description="number of classified cells")
    counts: dict[str, int]
    percent: dict[str, float] = Field(description="percent of the classified cells")
    intervals: Proportions
    review: list[ReviewedCell]
    warnings: list[Caution]
    errors: list[ImageProblem]
