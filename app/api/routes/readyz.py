"""`GET /readyz`: whether the service is ready for traffic, and if not, why."""

from __future__ import annotations

from fastapi import APIRouter

from app import errors
from app.api.openapi import answer, refusals
from app.api.routes.parameters import Current
from app.wire.schemas import Health

router = APIRouter(tags=["operate"])


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Check that the service is ready for requests",
    description="200 once the model is loaded and warmed up and its self-test gave the known answer. "
    "503 before that and during shutdown; `detail` gives the reason.",
    responses=answer({"status": "ready"}) | refusals(errors.NotReady),
)
async def readyz(lifecycle: Current) -> Health:
    lifecycle.check_ready()
    return Health(status="ready")
