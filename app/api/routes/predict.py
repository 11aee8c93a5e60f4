"""`POST /predict`: images → class probabilities."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from app.api.json_response import render
from app.api.lifecycle import Lifecycle
from app.api.openapi import answer, body, refusals
from app.api.routes.examples import PREDICTIONS
from app.api.routes.images import IMAGE_ERRORS, classify, image_limit, images_body
from app.api.routes.parameters import Cells, Context, Loaded
from app.api.uploads import read_images
from app.inference.threads import SHORT
from app.wire.responses import model_reference
from app.wire.schemas import Predictions


class PredictRoute(APIRoute):
    """Answers a POST without a query itself: its parameters have their defaults, nothing is to be validated.

    FastAPI's injection and serialisation would take a quarter of the event loop's time for an image.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST" or scope["query_string"]:
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive, send)
        lifecycle: Lifecycle = request.app.state.lifecycle
        with lifecycle.use() as service:
            result = await predict(request, service, request.state.context)
        if isinstance(result, Predictions):
            document = result.model_dump_json(exclude_unset=self.response_model_exclude_unset)
            result = Response(document, media_type="application/json")
        await result(scope, receive, send)


router = APIRouter(tags=["classify"], route_class=PredictRoute)

DESCRIPTION = """
Send `multipart/form-data` with one or more parts named `files`, or a single image as the body.
`index` is an image's position in the request. Images that cannot be classified are listed in `errors`; the
status is 200 if at least one image was classified. If none was, the response is a problem document with
the status of the first image's error, and its `errors` lists every image. Not for diagnosis.

With `cells=all` every leukocyte of an image is a prediction of its own: several share an `index`, and each
has its `frame` and its number `cell`, from 0, in reading order. Images without any are listed in `empty`.
With `cells=one`, the default, an image is one cell; of several, one is classified, and `several_cells` is a
reason for review.

    curl -F files=@cell.jpg http://127.0.0.1:8000/predict
"""


@router.post(
    "/predict",
    operation_id="predict",
    summary="Classify images of cells",
    description=DESCRIPTION,
    response_model=Predictions,
    response_model_exclude_unset=True,  # the answer to `cells=one` is as it was before there was a choice
    responses=answer(PREDICTIONS) | refusals(*IMAGE_ERRORS),
    openapi_extra=body(images_body("PredictForm", {"files": ["cell.jpg", "cut.jpg"]})),
)
async def predict(
    request: Request,
    service: Loaded,
    context: Context,
    cells: Cells = "one",
    explain: Annotated[
        Literal["cam"] | None,
        Query(
            description="`cam`: add a class-activation map to each prediction",
            json_schema_extra={"type": "string", "enum": ["cam"]},
        ),
    ] = None,
) -> Predictions | Response:
    with service.stage("receive", context.stages):
        parts = (await read_images(request, image_limit(service))).images
    classified = await classify(service, parts, context, cam=explain == "cam", all_cells=cells == "all")
    if isinstance(classified, Response):
        return classified
    empty: dict[str, Any] = {"empty": classified.empty} if cells == "all" else {}
    result = Predictions(
        request_id=context.request_id,
        model=model_reference(service.classifier.bundle),
        predictions=classified.predictions,
        errors=classified.faults,
        **empty,
    )
    if len(result.predictions) <= len(parts):
        return result
    # In a thread, since rendering thousands would block the event loop.
    return Response(await SHORT.run(lambda: render(result), context), media_type="application/json")
