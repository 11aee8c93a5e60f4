"""`GET /healthz`: the process is alive."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.openapi import answer
from app.wire.schemas import Health

router = APIRouter(tags=["operate"])


@router.get(
    "/healthz",
    operation_id="healthz",
    summary="Check that the process is alive",
    responses=answer({"status": "alive"}),
)
async def healthz() -> Health:
    return Health(status="alive")
