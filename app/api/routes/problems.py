"""`GET /problems/{code}`: the meaning of a problem; its `type` is this URL."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.exceptions import HTTPException

from app.api.openapi import answer, not_found
from app.api.routes.parameters import Context
from app.wire.problems import MEANINGS, status_of, title_of, uri
from app.wire.schemas import ProblemType

router = APIRouter(tags=["operate"])

EXAMPLE = {
    "type": "/problems/queue_full",
    "code": "queue_full",
    "title": "Queue full",
    "status": 429,
    "meaning": MEANINGS["queue_full"],
}


@router.get(
    "/problems/{code}",
    operation_id="problem",
    summary="Describe a problem type",
    responses=answer(EXAMPLE) | not_found(),
)
async def problem(
    code: Annotated[
        str,
        Path(
            description="the `code` of a problem document",
            examples=["queue_full"],
            json_schema_extra={"enum": sorted(MEANINGS)},
        ),
    ],
    context: Context,
) -> ProblemType:
    if code not in MEANINGS:
        raise HTTPException(404)
    return ProblemType(
        type=uri(code, context.prefix),
        code=code,
        title=title_of(code),
        status=status_of(code),
        meaning=MEANINGS[code],
    )
