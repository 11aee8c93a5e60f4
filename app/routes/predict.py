"""`POST /predict`: images → class probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from app import errors, problems
from app.answers import model_reference, prediction
from app.errors import LeukoError
from app.openapi import BINARY, BODY_ERRORS, answer, body, form, refusals
from app.pipeline import Answer
from app.routes.examples import PREDICTIONS
from app.routes.parameters import Arrived, Findings, Loaded, RequestId
from app.schemas import ImageProblem, Predictions
from app.service import MIB, Service
from app.uploads import Limit, Part, read_images

router = APIRouter(tags=["classify"])

BODY = form(
    {"files": {"type": "array", "items": BINARY, "minItems": 1}},
    required=["files"],
    example={"files": ["cell.jpg", "cut.jpg"]},
) | {f"image/{kind}": {"schema": BINARY} for kind in ("jpeg", "png", "webp", "tiff", "bmp", "gif")}

DESCRIPTION = """
Send `multipart/form-data` with one or more parts named `files`, or a single image as the body.
`index` is the position in the request. Of several images the bad ones are listed in `errors`, and the
status is 200 while one is good. Where all are bad, the status is the first one's, and the problem's
`errors` lists them all. Not for diagnosis.

    curl -F files=@cell.jpg http://127.0.0.1:8000/predict
"""


@router.post(
    "/predict",
    operation_id="predict",
    summary="Classify images of cells",
    description=DESCRIPTION,
    response_model=Predictions,
    responses=answer(PREDICTIONS)
    | refusals(
        *BODY_ERRORS, errors.Unusable, errors.UndecodableImage, errors.EngineError, errors.DeadlinePassed
    ),
    openapi_extra=body(BODY),
)
async def predict(
    request: Request,
    service: Loaded,
    request_id: RequestId,
    arrived: Arrived,
    findings: Findings,
    explain: Annotated[
        Literal["cam"] | None, Query(description="`cam` adds a class-activation map to each prediction")
    ] = None,
) -> Predictions | Response:
    with service.telemetry.stage("receive"):
        parts = await read_images(request, image_limit(service))
    deadline = arrived + service.settings.deadline_s
    answers = await service.classify([part.data for part in parts], cam=explain == "cam", deadline=deadline)
    bundle = service.classifier.bundle
    findings["model_sha256"] = bundle.sha256
    findings["images"] = [_finding(part, one) for part, one in zip(parts, answers, strict=True)]
    faults = _faults(parts, answers)
    if len(faults) == len(parts):
        first = next(one for one in answers if isinstance(one, LeukoError))
        return problems.answer(first, request_id, faults)
    found = [
        prediction(index, part.filename, one, bundle.labels)
        for index, (part, one) in enumerate(zip(parts, answers, strict=True))
        if isinstance(one, Answer)
    ]
    return Predictions(request_id=request_id, model=model_reference(bundle), predictions=found, errors=faults)


def image_limit(service: Service) -> Limit:
    return Limit(service.settings.images_per_request, service.settings.max_image_mib * MIB)


def _finding(part: Part, answer: Answer | LeukoError) -> dict[str, Any]:
    if isinstance(answer, LeukoError):
        return {"sha256": sha256(part.data).hexdigest(), "error": answer.code}
    found = answer.prediction
    return {
        "sha256": answer.image_sha256,
        "label": found.label,
        "confidence": round(found.confidence, 4),
        "review": bool(found.review_reasons),
    }


def _faults(parts: Sequence[Part], answers: Sequence[Answer | LeukoError]) -> list[ImageProblem]:
    return [
        problems.image_problem(one, index, part.filename)
        for index, (part, one) in enumerate(zip(parts, answers, strict=True))
        if isinstance(one, LeukoError)
    ]
