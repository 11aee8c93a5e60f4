"""`POST /predict`: images → class probabilities."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from app.api.openapi import answer, body, refusals
from app.api.routes.examples import PREDICTIONS
from app.api.routes.images import IMAGE_ERRORS, classify, image_limit, images_body
from app.api.routes.parameters import Context, Loaded
from app.api.uploads import read_images
from app.wire.responses import model_reference
from app.wire.schemas import Predictions

router = APIRouter(tags=["classify"])

DESCRIPTION = """
Send `multipart/form-data` with one or more parts named `files`, or a single image as the body.
`index` is an image's position in the request. Images that cannot be classified are listed in `errors`; the
status is 200 if at least one image was classified. If none was, the response is a problem document with
the status of the first image's error, and its `errors` lists every image. Not for diagnosis.

    curl -F files=@cell.jpg http://127.0.0.1:8000/predict
"""


@router.post(
    "/predict",
    operation_id="predict",
    summary="Classify images of cells",
    description=DESCRIPTION,
    response_model=Predictions,
    responses=answer(PREDICTIONS) | refusals(*IMAGE_ERRORS),
    openapi_extra=body(images_body("PredictForm", {"files": ["cell.jpg", "cut.jpg"]})),
)
async def predict(
    request: Request,
    service: Loaded,
    context: Context,
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
    classified = await classify(service, parts, context, cam=explain == "cam")
    if isinstance(classified, Response):
        return classified
    return Predictions(
        request_id=context.request_id,
        model=model_reference(service.classifier.bundle),
        predictions=classified.predictions,
        errors=classified.faults,
    )
