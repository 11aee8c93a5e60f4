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
    summary="Does it want traffic?",
    description="200 once the weights are loaded, every batch size is warm and the known answer came out "
    "right; 503, with what is missing, before that and while stopping.",
    responses=answer({"status": "ready"}) | refusals(errors.NotReady),
)
async def readyz(lifecycle: Current) -> Health:
    lifecycle.check_ready()
    return Health(status="ready")
