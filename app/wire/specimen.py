"""Wire types of a specimen and its differential count."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from app.wire.schemas import ImageProblem, ModelReference, Probability, Reason

MAX_CELLS = 10_000  # that were classified before


def _printable(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("must be printable, and not blank")
    return text


Identifier = Annotated[
    Annotated[str, Field(max_length=128), AfterValidator(_printable)] | None,
    BeforeValidator(lambda value: None if value == "" else value),
]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Specimen(BaseModel):
    """Whose cells they are, in the caller's own terms; echoed, and kept nowhere."""

    specimen: Identifier = Field(None, description="identifier of the specimen")
    accession: Identifier = Field(None, description="accession number of the order")


class ClassifiedCell(BaseModel):
    """A prediction of `/predict`, or what matters of it."""

    label: str
    confidence: Probability | None = None
    image_sha256: Sha256 | None = None
    filename: str | None = None
    review_reasons: list[Reason] = []


class ClassifiedCells(Specimen):
    """A specimen's cells that were classified before."""

    predictions: list[ClassifiedCell] = Field(min_length=1, max_length=MAX_CELLS)


class Proportions(BaseModel):
    """By class: least and most, in percent."""

    level: float
    unit: Literal["percent"]
    wilson: dict[str, tuple[float, float]]
    exact: dict[str, tuple[float, float]] = Field(description="Clopper–Pearson")


class ReviewedCell(BaseModel):
    """A cell that a person must look at."""

    index: int = Field(description="position in the request, from 0")
    filename: str | None
    image_sha256: str | None
    label: str
    confidence: Probability | None
    reasons: list[Reason]


class Caution(BaseModel):
    """What a reader of the counts must know."""

    code: Literal["few_cells", "classified_cells_only", "images_left_out", "duplicate_images"]
    detail: str


class Differential(BaseModel):
    request_id: str
    model: ModelReference
    specimen: str | None
    accession: str | None
    fingerprint: Sha256 | None = Field(
        description="the same for the same images, in any order, and the same model; null without hashes"
    )
    n: int = Field(description="cells that were classified")
    counts: dict[str, int]
    percent: dict[str, float] = Field(description="of the classified cells")
    intervals: Proportions
    review: list[ReviewedCell]
    warnings: list[Caution]
    errors: list[ImageProblem]
