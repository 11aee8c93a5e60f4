"""JSON responses of any size, rendered off the event loop."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel
from starlette.responses import Response


async def json_response(document: BaseModel) -> Response:
    """Render a document in a thread: it may have an entry for each of 200,000 images."""
    body = await asyncio.to_thread(document.model_dump_json)
    return Response(body, media_type="application/json")
