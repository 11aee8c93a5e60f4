"""`POST /evaluate` and `/evaluate/predictions`: labels and predictions → the full metric suite."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from app import errors
from app.api import sse
from app.api.json_bodies import finish
from app.api.json_response import render
from app.api.json_tasks import ScoreOutcomes
from app.api.labelled_upload import LabelledSet, read_labelled
from app.api.negotiation import accepts_events
from app.api.openapi import BINARY, BODY_ERRORS, answer, body, event_stream, form, ref, refusals, text_field
from app.api.routes.examples import EVALUATION, EVENTS, OUTCOMES, REPORT
from app.api.routes.parameters import Context, Loaded
from app.api.uploads import Limit, read_form
from app.archives.file_labels import assign_groups
from app.archives.pattern_search import pattern_child
from app.inference.scoring import Progress, score
from app.inference.service import Service, archive_limits
from app.inference.threads import LONG, Pool
from app.observability.request_context import RequestContext
from app.settings import Settings
from app.units import MIB
from app.wire import responses
from app.wire.schemas import Evaluation, EvaluationProgress, Report

router = APIRouter(tags=["evaluate"])

MAX_MAPPING_BYTES = 64 * MIB  # labels or groups of 200,000 long file names
MAX_OUTCOMES_BYTES = 64 * MIB
MAX_PATTERN_BYTES = 1024

MOST_WAITING = 4  # patterns of one caller
PATTERNS = Pool("patterns", 2, MOST_WAITING)  # each waits for the process of one pattern

MAPPING = "JSON object, or table (CSV) of two columns, from file name to "
BODY = form(
    "EvaluateForm",
    {
        "archive": BINARY | {"description": "ZIP with one folder per class, at any depth"},
        "files": {
            "type": "array",
            "items": BINARY,
            "default": [],  # else Swagger UI sends a text
            "description": "images, instead of `archive`; `labels` is then required",
        },
        "labels": text_field(MAPPING + "class"),
        "groups": text_field(MAPPING + "source photo or patient"),
        "group_pattern": text_field(
            "instead of `groups`: regular expression whose first group is the source"
        ),
    },
    required=[],
    example={"archive": "test.zip", "group_pattern": r"/(patient\d+)_"},
)
STREAM = event_stream(EVENTS, progress="EvaluationProgress", result="Evaluation", error="Problem")

DESCRIPTION = """
Send a labelled set: a ZIP in the part `archive`, or images in parts `files` with their classes in the part
`labels`. If `groups` or `group_pattern` gives the source photo or patient of each image, confidence intervals
are bootstrapped over sources instead of images. A table may be separated by commas, semicolons or tabs, in
UTF-8 or UTF-16, with or without a header. In the names of classes, case, surrounding blanks and a plural s
make no difference. Images that cannot be decoded are left out of the report and listed in `errors`; an
invalid archive is refused as a whole. Files of an archive that are no images, by suffix or content, are left
out and counted in `warnings`. With `Accept: text/event-stream` the response is a stream of `progress` events
that ends with one `result` or one `error` (a problem document). `/predict` has priority over `/evaluate`.

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
    labelled, groups = await _read(request, service, context)
    progress = Progress(len(labelled.images))

    async def work() -> Evaluation:
        evaluation = await _evaluate(service, labelled, groups, progress, context)
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
        stream = sse.stream(work, report_progress, context)
        return StreamingResponse(stream, media_type="text/event-stream", headers=sse.HEADERS)
    evaluation = await work()
    return Response(await LONG.run(lambda: render(evaluation), context), media_type="application/json")


@router.post(
    "/evaluate/predictions",
    operation_id="evaluate_predictions",
    summary="Evaluate existing predictions",
    description="Give classes by name or index. Without `probabilities`, scores that need them are null. "
    "Without `predictions`, the class with the highest probability is the prediction. "
    "There may be as many rows as `/evaluate` accepts images: `max_archive_entries` of `GET /model`.",
    response_model=Report,
    responses=answer(REPORT) | refusals(*BODY_ERRORS, errors.BadLabels, errors.DeadlinePassed),
    openapi_extra=body({"application/json": {"schema": ref("Outcomes"), "example": OUTCOMES}}),
)
async def evaluate_predictions(request: Request, service: Loaded, context: Context) -> Response:
    settings = service.settings
    task = ScoreOutcomes(context.request_id, service.classifier.bundle.labels, settings.max_archive_entries)
    deadline = context.arrived + settings.evaluate_deadline_s
    finished = await finish(request, task, MAX_OUTCOMES_BYTES, context, deadline)
    return Response(finished.body, media_type=finished.media_type)


async def _read(
    request: Request, service: Service, context: RequestContext
) -> tuple[LabelledSet, list[bytes] | None]:
    """Return the images and their sources; the labels and groups of the form are freed."""
    with service.stage("receive", context.stages):
        form = await read_form(request, _limits(service.settings))
    labels = service.classifier.bundle.labels
    limits = archive_limits(service.settings)
    labelled = await LONG.run(lambda: read_labelled(form, labels, limits), context)
    groups = await _assign_groups(labelled, context)
    return replace(labelled, grouping=None), groups


async def _assign_groups(labelled: LabelledSet, context: RequestContext) -> list[bytes] | None:
    grouping = labelled.grouping
    if grouping is None:
        return None

    def assign() -> list[bytes]:
        return assign_groups([image.name for image in labelled.images], grouping, child)

    child = pattern_child()
    pool = PATTERNS if isinstance(grouping, str) else LONG
    with closing(child):
        return await pool.run(assign, context)


async def _evaluate(
    service: Service,
    labelled: LabelledSet,
    groups: list[bytes] | None,
    progress: Progress,
    context: RequestContext,
) -> Evaluation:
    bundle, images = service.classifier.bundle, labelled.images
    deadline = context.arrived + service.settings.evaluate_deadline_s
    scored = await score(service, images, groups, progress, context, deadline=deadline)
    return await LONG.run(
        lambda: responses.evaluation(
            context.request_id,
            bundle,
            images,
            scored,
            progress,
            left_out=labelled.left_out,
            lazy=True,
            prefix=context.prefix,
        ),
        context,
    )


def _limits(settings: Settings) -> dict[str, Limit]:
    return {
        "archive": Limit(1, settings.max_body_mib * MIB),
        "files": Limit(settings.max_archive_entries, settings.max_image_mib * MIB),
        "labels": Limit(1, MAX_MAPPING_BYTES),
        "groups": Limit(1, MAX_MAPPING_BYTES),
        "group_pattern": Limit(1, MAX_PATTERN_BYTES),
    }
