"""`POST /evaluate` and `/evaluate/predictions`: labels and predictions → the full metric suite."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from app import errors
from app.api import sse
from app.api.json_response import json_response
from app.api.labelled_upload import LabelledSet, class_indices, read_labelled
from app.api.negotiation import accepts_events
from app.api.openapi import BINARY, BODY_ERRORS, answer, body, event_stream, form, ref, refusals
from app.api.routes.examples import EVALUATION, EVENTS, OUTCOMES, REPORT
from app.api.routes.parameters import Context, Loaded
from app.api.uploads import Limit, read_form, read_json
from app.evaluation import report
from app.inference.fair_queue import Caller
from app.inference.scoring import Progress, score
from app.inference.service import Service, archive_limits
from app.observability.request_context import RequestContext
from app.settings import Settings
from app.units import MIB
from app.wire import responses
from app.wire.schemas import Evaluation, EvaluationProgress, Outcomes, Report

router = APIRouter(tags=["evaluate"])

MAX_MAPPING_BYTES = 64 * MIB  # labels or groups of 200,000 long file names
MAX_OUTCOMES_BYTES = 64 * MIB
MAX_PATTERN_BYTES = 1024

MAPPING = "JSON object or two-column CSV from file name to "
BODY = form(
    "EvaluateForm",
    {
        "archive": BINARY | {"description": "ZIP with one folder per class, at any depth"},
        "files": {
            "type": "array",
            "items": BINARY,
            "description": "images, instead of `archive`; `labels` is then required",
        },
        "labels": {"type": "string", "description": MAPPING + "class"},
        "groups": {"type": "string", "description": MAPPING + "source photo or patient"},
        "group_pattern": {
            "type": "string",
            "description": "instead of `groups`: regular expression whose first group is the source",
        },
    },
    required=[],
    example={"archive": "test.zip", "group_pattern": r"/(patient\d+)_"},
)
STREAM = event_stream(EVENTS, progress="EvaluationProgress", result="Evaluation", error="Problem")

DESCRIPTION = """
Send a labelled set: a ZIP in the part `archive`, or images in parts `files` with their classes in the part
`labels`. If `groups` or `group_pattern` gives the source photo or patient of each image, confidence intervals
are bootstrapped over sources instead of images. Images that cannot be decoded are left out of the report
and listed in `errors`; an invalid archive is refused as a whole. With `Accept: text/event-stream` the
response is a stream of `progress` events that ends with one `result` or one `error` (a problem document).
`/predict` has priority over `/evaluate`.

    curl -F archive=@test.zip http://127.0.0.1:8000/evaluate
"""


@router.post(
    "/evaluate",
    operation_id="evaluate",
    summary="Evaluate the model on labelled images",
    description=DESCRIPTION,
    response_model=Evaluation,
    responses=answer(EVALUATION, **{"text/event-stream": STREAM})
    | refusals(*BODY_ERRORS, errors.Unusable, errors.BadArchive, errors.BadLabels, errors.DeadlinePassed),
    openapi_extra=body(BODY),
)
async def evaluate(request: Request, service: Loaded, context: Context) -> Response:
    with service.stage("receive", context.stages):
        form = await read_form(request, _limits(service.settings))
    labels = service.classifier.bundle.labels
    labelled = await asyncio.to_thread(read_labelled, form, labels, archive_limits(service.settings))
    progress = Progress(len(labelled.images))

    async def work() -> Evaluation:
        evaluation = await _evaluate(service, labelled, progress, context)
        context.findings.update(
            model_sha256=evaluation.model.sha256,
            n=evaluation.n,
            accuracy=round(evaluation.accuracy, 4),
            errors=len(evaluation.errors),
        )
        return evaluation

    def report_progress() -> EvaluationProgress:
        return EvaluationProgress(
            done=progress.done, total=progress.total, images_per_second=progress.images_per_second
        )

    if accepts_events(request.headers.get("accept", "")):
        stream = sse.stream(work, report_progress, context.request_id)
        return StreamingResponse(stream, media_type="text/event-stream", headers=sse.HEADERS)
    return await json_response(await work())


@router.post(
    "/evaluate/predictions",
    operation_id="evaluate_predictions",
    summary="Evaluate existing predictions",
    description="Give classes by name or index. Without `probabilities`, scores that need them are null. "
    "Without `predictions`, the class with the highest probability is the prediction.",
    response_model=Report,
    responses=answer(REPORT) | refusals(*BODY_ERRORS, errors.BadLabels),
    openapi_extra=body({"application/json": {"schema": ref("Outcomes"), "example": OUTCOMES}}),
)
async def evaluate_predictions(request: Request, service: Loaded, context: Context) -> Response:
    outcomes = await read_json(request, Outcomes, MAX_OUTCOMES_BYTES)
    report = await asyncio.to_thread(_score_outcomes, outcomes, service.classifier.bundle.labels)
    return await json_response(Report(request_id=context.request_id, **asdict(report)))


async def _evaluate(
    service: Service, labelled: LabelledSet, progress: Progress, context: RequestContext
) -> Evaluation:
    images, bundle = labelled.images, service.classifier.bundle
    deadline = context.arrived + service.settings.evaluate_deadline_s
    scored = await score(
        service,
        images,
        labelled.groups,
        progress,
        caller=Caller(context.caller, context.weight),
        deadline=deadline,
        stages=context.stages,
    )
    return await asyncio.to_thread(responses.evaluation, context.request_id, bundle, images, scored, progress)


def _score_outcomes(outcomes: Outcomes, labels: tuple[str, ...]) -> report.Report:
    predictions = outcomes.predictions
    return report.evaluate(
        class_indices("labels", outcomes.labels, labels),
        None if predictions is None else class_indices("predictions", predictions, labels),
        outcomes.probabilities,
        names=labels,
        groups=outcomes.groups,
    )


def _limits(settings: Settings) -> dict[str, Limit]:
    return {
        "archive": Limit(1, settings.max_body_mib * MIB),
        "files": Limit(settings.max_archive_entries, settings.max_image_mib * MIB),
        "labels": Limit(1, MAX_MAPPING_BYTES),
        "groups": Limit(1, MAX_MAPPING_BYTES),
        "group_pattern": Limit(1, MAX_PATTERN_BYTES),
    }
