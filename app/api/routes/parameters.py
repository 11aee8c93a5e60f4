"""Parameter types of the handlers, which FastAPI injects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import Depends, Query, Request

from app.api.lifecycle import Lifecycle
from app.inference.service import Service
from app.observability.request_context import RequestContext


async def _lifecycle(request: Request) -> Lifecycle:
    lifecycle: Lifecycle = request.app.state.lifecycle
    return lifecycle


async def _service(
    request: Request,
    model: Annotated[
        str | None, Query(description="NAME or NAME@VERSION of a model, if the service has several")
    ] = None,
) -> AsyncIterator[Service]:
    lifecycle: Lifecycle = request.app.state.lifecycle
    name, _, version = (model or "").partition("@")
    with lifecycle.use(None if model is None else name, version or None) as service:
        yield service


async def _named(request: Request, name: str, version: str | None = None) -> AsyncIterator[Service]:
    lifecycle: Lifecycle = request.app.state.lifecycle
    with lifecycle.use(name, version) as service:
        yield service


async def _context(request: Request) -> RequestContext:
    context: RequestContext = request.state.context
    return context


Cells = Annotated[
    Literal["one", "all"],
    Query(description="`all`: classify every leukocyte of each image; `one`: an image is one cell"),
]
Current = Annotated[Lifecycle, Depends(_lifecycle)]
Loaded = Annotated[Service, Depends(_service)]  # by the query; 503 until the model is loaded
Named = Annotated[Service, Depends(_named)]  # the model in the path
Context = Annotated[RequestContext, Depends(_context)]
