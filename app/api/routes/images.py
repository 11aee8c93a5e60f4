"""What routes that classify uploaded images have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from fastapi import Response

from app import errors
from app.api import problem_responses
from app.api.openapi import BINARY, BODY_ERRORS, Document, form
from app.api.uploads import Limit, Part
from app.errors import LeukoError
from app.inference.pipeline import Answer
from app.inference.service import Service
from app.units import MIB
from app.wire import problems
from app.wire.responses import prediction
from app.wire.schemas import ImageProblem, Prediction

MEDIA_TYPES = (
    *(f"image/{kind}" for kind in ("jpeg", "png", "webp", "tiff", "bmp", "gif")),
    "application/dicom",
)
IMAGE_ERRORS = (
    *BODY_ERRORS,
    errors.Unusable,
    errors.UndecodableImage,
    errors.EngineError,
    errors.DeadlinePassed,
)


@dataclass(frozen=True)
class Classified:
    """At least one prediction; the images that have none are in `faults`."""

    predictions: list[Prediction]
    faults: list[ImageProblem]


def images_body(name: str, example: Document, **texts: Document) -> Document:
    """For OpenAPI: a form of images, and of `texts` by name, or an image as it is."""
    properties = {"files": {"type": "array", "items": BINARY, "minItems": 1}} | texts
    bare = {kind: {"schema": BINARY} for kind in MEDIA_TYPES}
    return form(name, properties, required=["files"], example=example) | bare


def image_limit(service: Service) -> Limit:
    return Limit(service.settings.images_per_request, service.settings.max_image_mib * MIB)


async def classify(
    service: Service,
    parts: Sequence[Part],
    findings: dict[str, Any],
    request_id: str,
    *,
    arrived: float,
    cam: bool = False,
) -> Classified | Response:
    """The first image's problem, with all of them itemised, where every image has one."""
    deadline = arrived + service.settings.deadline_s
    answers = await service.classify([part.data for part in parts], cam=cam, deadline=deadline)
    bundle = service.classifier.bundle
    findings["model_sha256"] = bundle.sha256
    findings["images"] = [finding(part.data, one) for part, one in zip(parts, answers, strict=True)]
    faults = _faults(parts, answers)
    if len(faults) == len(parts):
        first = next(one for one in answers if isinstance(one, LeukoError))
        return problem_responses.answer(first, request_id, faults)
    found = [
        prediction(index, part.filename, one, bundle.labels)
        for index, (part, one) in enumerate(zip(parts, answers, strict=True))
        if isinstance(one, Answer)
    ]
    return Classified(found, faults)


def finding(image: bytes, answer: Answer | LeukoError) -> dict[str, Any]:
    """What the audit log says of an image."""
    if isinstance(answer, LeukoError):
        return {"sha256": sha256(image).hexdigest(), "error": answer.code}
    found = answer.prediction
    return {
        "sha256": answer.image_sha256,
        "label": found.label,
        "confidence": round(found.confidence, 4),
        "ood_score": round(found.ood_score, 4),
        "review": found.review,
    }


def _faults(parts: Sequence[Part], answers: Sequence[Answer | LeukoError]) -> list[ImageProblem]:
    return [
        problems.image_problem(one, index, part.filename)
        for index, (part, one) in enumerate(zip(parts, answers, strict=True))
        if isinstance(one, LeukoError)
    ]
