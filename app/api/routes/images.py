"""Shared by the routes that classify uploaded images: their OpenAPI bodies, limits and classification."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from fastapi import Response

from app import errors
from app.api import problem_responses
from app.api.openapi import BINARY, BODY_ERRORS, Document, form
from app.api.uploads import Limit, Part
from app.errors import LeukoError, TooLarge
from app.inference.fair_queue import Caller
from app.inference.pipeline import Answer, Result
from app.inference.service import Service
from app.inference.threads import SHORT
from app.observability.request_context import RequestContext
from app.units import MIB
from app.wire import problems
from app.wire.responses import prediction
from app.wire.schemas import EmptyImage, ImageProblem, Prediction
from app.wire.specimen import MAX_CELLS

MEDIA_TYPES = (
    *(f"image/{kind}" for kind in ("jpeg", "png", "webp", "tiff", "bmp", "gif")),
    "application/dicom",
)
MOST_FREED = 32 * MIB  # bytes that are freed in one turn of the event loop
IMAGE_ERRORS = (
    *BODY_ERRORS,
    errors.Unusable,
    errors.UndecodableImage,
    errors.EngineError,
    errors.DeadlinePassed,
)


@dataclass(frozen=True)
class Classified:
    """predictions: at least one, unless all images are empty; faults: of images that cannot be classified."""

    predictions: list[Prediction]
    empty: list[EmptyImage]
    faults: list[ImageProblem]


def images_body(name: str, example: Document, **texts: Document) -> Document:
    """Return the request body for OpenAPI: a form of images and of `texts` by name, or a bare image."""
    properties = {"files": {"type": "array", "items": BINARY, "minItems": 1}} | texts
    bare_images = {kind: {"schema": BINARY} for kind in MEDIA_TYPES}
    return form(name, properties, required=["files"], example=example) | bare_images


def image_limit(service: Service) -> Limit:
    return Limit(service.settings.images_per_request, service.settings.max_image_mib * MIB)


async def classify(
    service: Service,
    parts: list[Part],
    context: RequestContext,
    *,
    cam: bool = False,
    all_cells: bool = False,
) -> Classified | Response:
    """Classify uploaded images. If all fail, return the first image's problem, which lists all problems.

    all_cells: classify all leukocytes of each image. Raise TooLarge for over `MAX_CELLS`. The bytes of
    `parts` are dropped.
    """
    try:
        return await _classify(service, parts, context, cam=cam, all_cells=all_cells)
    finally:
        await release(parts)


async def release(parts: list[Part]) -> None:
    """Drop the bytes of parts, a few at a time: to free all of a large request at once takes 20 ms."""
    held = 0
    for index, part in enumerate(parts):
        held += len(part.data)
        parts[index] = Part(part.filename, b"")
        if held > MOST_FREED:
            held = 0
            await asyncio.sleep(0)


async def _classify(
    service: Service, parts: Sequence[Part], context: RequestContext, *, cam: bool, all_cells: bool
) -> Classified | Response:
    images = [part.data for part in parts]
    deadline = context.arrived + service.settings.deadline_s
    caller = Caller.of(context)
    answers = await service.classify(
        images, caller=caller, cam=cam, all_cells=all_cells, deadline=deadline, stages=context.stages
    )
    count = sum(len(answer.cells) for answer in answers if not isinstance(answer, LeukoError))
    if count > MAX_CELLS:
        raise TooLarge(f"the images have {count} leukocytes; at most {MAX_CELLS} in one request are accepted")
    bundle = service.classifier.bundle
    context.findings.update(await findings(images, answers, bundle.sha256, context))
    faults = [
        problems.image_problem(answer, index, part.filename, context.prefix)
        for index, (part, answer) in enumerate(zip(parts, answers, strict=True))
        if isinstance(answer, LeukoError)
    ]
    if len(faults) == len(parts):
        first = next(answer for answer in answers if isinstance(answer, LeukoError))
        return problem_responses.render(first, context.request_id, faults)
    good = [
        (index, part.filename, answer.cells)
        for index, (part, answer) in enumerate(zip(parts, answers, strict=True))
        if not isinstance(answer, LeukoError)
    ]

    def predictions() -> list[Prediction]:
        return [prediction(index, name, cell, bundle.labels) for index, name, cells in good for cell in cells]

    # In a thread, since making thousands would block the event loop.
    made = await SHORT.run(predictions, context) if count > len(parts) else predictions()
    empty = [EmptyImage(index=index, filename=filename) for index, filename, cells in good if not cells]
    return Classified(made, empty, faults)


async def findings(
    images: Sequence[bytes],
    answers: Sequence[Result | LeukoError],
    model_sha256: str,
    context: RequestContext,
) -> dict[str, Any]:
    """Return the audit log's fields for a request's images. answers: of each image."""
    failed = [image for image, answer in zip(images, answers, strict=True) if isinstance(answer, LeukoError)]
    # In a thread, since hashing up to hundreds of MiB would block the event loop.
    hashes = iter(await SHORT.run(lambda: _hash_all(failed), context) if failed else ())
    entries: list[dict[str, Any]] = []
    for answer in answers:
        if isinstance(answer, LeukoError):
            entries.append({"sha256": next(hashes), "error": answer.code})
        elif answer.cells:
            entries += map(_entry, answer.cells)
        else:
            entries.append({"sha256": answer.image_sha256, "cells": 0})
    return {"model_sha256": model_sha256, "images": entries}


def _hash_all(images: Sequence[bytes]) -> list[str]:
    return [sha256(image).hexdigest() for image in images]


def _entry(answer: Answer) -> dict[str, Any]:
    prediction = answer.prediction
    number = {} if answer.cell is None else {"cell": answer.cell}
    return {
        "sha256": answer.image_sha256,
        **number,
        "label": prediction.label,
        "confidence": round(prediction.confidence, 4),
        "ood_score": round(prediction.ood_score, 4),
        "review": prediction.review,
        "review_reasons": list(prediction.review_reasons),
    }
