"""`GET /docs`: Swagger UI; all its files are served by this service. `GET /openapi.json`: what it shows."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.api.page_files import PageFile

WEB = Path(__file__).parents[1] / "web"
# No inline scripts or styles; Swagger UI's style sheet has its icons in data: URLs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> PageFile:
    headers = {"Content-Security-Policy": POLICY}
    return PageFile(WEB / "docs.html", headers=headers)


@router.get("/openapi.json")
async def document(request: Request) -> Response:
    """Return the OpenAPI document, rendered once: that takes milliseconds of the event loop."""
    state = request.app.state
    if not hasattr(state, "openapi"):
        state.openapi = JSONResponse(request.app.openapi()).body
    return Response(state.openapi, media_type="application/json")
