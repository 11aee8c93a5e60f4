"""Types of request and response bodies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from app.evaluation.intervals import Intervals
from app.evaluation.report import Average, ClassScores, GroupScores, Score
from app.evaluation.verification import Verification

Probability = Annotated[float, Field(ge=0, le=1)]
Matrix = list[list[int]]
Reason = Literal[
    "no_cell",
    "several_cells",
    "cut_off",
    "blurred",
    "exposure",
    "low_confidence",
    "out_of_distribution",
]


class ImageProblem(BaseModel):
    """An error of one image in a request."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    index: int = Field(description="position in the request, from 0")
    filename: str | None


class FieldProblem(BaseModel):
    """An error of one parameter or field of a request."""

    field: str
    detail: str
    code: str


class Problem(BaseModel):
    """Problem document (RFC 9457). `type` is the URL of a description; `code` is stable, for programs."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[ImageProblem | FieldProblem] = []


class ModelReference(BaseModel):
    name: str
    version: str
    sha256: str


class Frame(BaseModel):
    """The part of the image that was classified, in pixels of the upright image."""

    left: float
    top: float
    width: float
    height: float
    nucleus: bool = Field(description="false: no nucleus was found, so the whole image was classified")


class ActivationMap(BaseModel):
    """How much each place in the frame supports the label, from 0 to 1, row by row."""

    shape: tuple[int, int]
    values: list[list[float]]


class Prediction(BaseModel):
    index: int = Field(description="position of the image in the request, from 0")
    cell: int | None = Field(
        None, description="with `cells=all`: number of the cell in its image, from 0, in reading order"
    )
    filename: str | None
    image_sha256: str
    label: str
    confidence: Probability
    probabilities: dict[str, Probability]
    ood_score: float = Field(description="distance from the training cells; 1 is typical of them")
    review: bool = Field(description="true: a person must look at this cell")
    review_reasons: list[Reason]
    frame: Frame
    cam: ActivationMap | None = None


class EmptyImage(BaseModel):
    """An image in which no leukocyte was found."""

    index: int = Field(description="position in the request, from 0")
    filename: str | None


EmptyImages = Annotated[
    list[EmptyImage], Field(description="with `cells=all`: the images in which no leukocyte was found")
]


class Predictions(BaseModel):
    request_id: str
    model: ModelReference
    predictions: list[Prediction]
    empty: EmptyImages = []
    errors: list[ImageProblem]


class Report(BaseModel):
    request_id: str
    n: int
    labels: list[str]
    accuracy: float
    per_class: dict[str, ClassScores]
    macro_avg: Average
    weighted_avg: Average
    mse: float = Field(description="mean squared error of class indices")
    rmse: float
    confusion_matrix: Matrix = Field(description="rows: true classes; columns: predicted classes")
    balanced_accuracy: Score
    cohen_kappa: Score
    matthews_corrcoef: Score
    log_loss: Score
    brier: Score
    ece: Score
    roc_auc_ovr: Score
    confidence_intervals: Intervals
    groups: GroupScores | None


class Mistake(BaseModel):
    filename: str
    label: str
    predicted: str
    confidence: Probability


class Caution(BaseModel):
    """A limit of a result that its reader must know."""

    code: Literal[
        "few_cells",
        "classified_cells_only",
        "not_verified",
        "images_left_out",
        "duplicate_images",
        "files_left_out",
        "cells_unidentified",
        "review_incomplete",
        "former_values_missing",
    ]
    detail: str


class Evaluation(Report):
    model: ModelReference
    verification: Verification
    elapsed_seconds: float
    images_per_second: float
    misclassified: list[Mistake]
    errors: list[ImageProblem]
    warnings: list[Caution] = Field(description="`files_left_out`: the archive also holds other files")


class EvaluationProgress(BaseModel):
    done: int
    total: int
    images_per_second: float


Classes = Annotated[list[StrictStr | StrictInt], Field(fail_fast=True)]
Row = Annotated[list[float], Field(fail_fast=True)]


class Outcomes(BaseModel):
    """Labels and predictions, one item per image; classes by name (any case) or index."""

    model_config = ConfigDict(extra="forbid")

    labels: Classes = Field(min_length=1)
    predictions: Classes | None = None
    probabilities: Annotated[list[Row], Field(fail_fast=True)] | None = None
    groups: Classes | None = Field(None, description="source photo or patient of each image")


class QualityThresholds(BaseModel):
    """Limits of a picture's quality, judged before the network is believed."""

    nuclear_contrast: float = Field(
        description="`no_cell` below: how much more green and red than blue the nucleus absorbs (density)"
    )
    grain: float = Field(description="`no_cell` above: `detail` of noise")
    cut: float = Field(description="`cut_off` above: length along the edge ÷ root of the nucleus's area")
    detail: float = Field(description="`blurred` below: edges at 1/56 ÷ at 1/28 of the frame")
    brightness: float = Field(description="`exposure` below: green of the background, 0 to 255")
    brightness_range: float = Field(description="`exposure` below: background − 5th percentile, in green")
    leukocytes: int = Field(
        1,
        description="`several_cells` above: leukocytes in the picture; with `cells=all`, 2 for one that is so"
        " near another find that both may be one cell",
    )
    outside: float = Field(
        0.15,
        description="`cut_off` above, `cells=all` only: share of the cell's width beyond the picture's edge,"
        " estimated from its nucleus and red cells",
    )


class FamiliarThresholds(BaseModel):
    """Thresholds for pictures that look like those of a laboratory that the model was trained on."""

    distance: float = Field(description="at most this far from the nearest laboratory's pictures")
    confidence: float = Field(description="review cells with a lower confidence")
    ood_score: float = Field(description="review cells with a higher score")


class ReviewThresholds(BaseModel):
    confidence: float = Field(description="review cells with a lower confidence")
    ood_score: float = Field(description="review cells with a higher score")
    familiar: FamiliarThresholds | None = Field(
        None, description="thresholds of pictures like those trained on; null: the same for all pictures"
    )
    quality: QualityThresholds | None = Field(
        None, description="review pictures beyond these limits; null: the bundle has none"
    )


class Site(BaseModel):
    """The verification of the bundle in one laboratory, by `leuko verify`."""

    name: str
    verified_at: str = Field(description="ISO 8601")
    cells: int
    balanced_accuracy: Probability
    interval: tuple[Probability, Probability] | None = Field(
        description="95 %, of the balanced accuracy; null if no class is of two patients or slides"
    )
    review_share: Probability
    right_when_kept: Score
    adapted: bool = Field(description="whether the weights were adapted to the laboratory")
    parent_sha256: str = Field(description="of the bundle that was verified or adapted")


class Limits(BaseModel):
    max_body_mib: int
    max_image_mib: int
    max_pixels: int
    max_side: int
    max_files: int
    max_cells: int = Field(description="leukocytes of one image, with `cells=all`")
    max_archive_entries: int
    deadline_s: float
    evaluate_deadline_s: float


class Model(BaseModel):
    name: str
    version: str
    sha256: str
    labels: list[str]
    codes: dict[str, str | None] = Field(
        description="LOINC code of each label in reports; null: it is reported as text"
    )
    preprocessing: dict[str, Any]
    temperature: float
    review: ReviewThresholds
    training: dict[str, Any] = Field(description="training recipe and data")
    scores: dict[str, Any] = Field(description="scores by data set")
    site: Site | None = Field(None, description="null: the bundle was not verified for a laboratory")
    engine: str
    device: str
    service_version: str
    limits: Limits


class Health(BaseModel):
    status: Literal["alive", "ready"]


class ProblemType(BaseModel):
    type: str
    code: str
    title: str
    status: int
    meaning: str
