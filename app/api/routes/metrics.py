"""`GET /metrics`: metrics in Prometheus' text format."""

from __future__ import annotations

from fastapi import APIRouter, Response
from starlette.responses import PlainTextResponse

from app.api.routes.parameters import Current

router = APIRouter(tags=["operate"])

EXAMPLE = 'leuko_images_total{outcome="ok"} 2487.0\n'


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Get metrics in Prometheus text format",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": EXAMPLE}}}},
)
def metrics(lifecycle: Current) -> Response:
    telemetry = lifecycle.telemetry
    return Response(telemetry.render(), media_type=telemetry.content_type)
