"""Problem documents as responses, and the handlers of every kind of exception."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from app import errors
from app.edge.paths import is_open_inference
from app.errors import LeukoError
from app.wire import problems
from app.wire.schemas import FieldProblem, ImageProblem, Problem

logger = logging.getLogger(__name__)


def answer(error: LeukoError, request_id: str, faults: Sequence[ImageProblem] = ()) -> Response:
    """What a client gets instead of an answer; `faults` itemises."""
    headers = {}
    if isinstance(error, errors.QueueFull | errors.NotReady):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, section 11.6.1
    return _respond(problems.problem(error, request_id, faults), headers)


async def answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LeukoError)
    return answer(error, request.state.context.request_id)


async def answer_http(request: Request, error: Exception) -> Response:
    """Starlette's own errors; their headers, such as Allow, are kept."""
    assert isinstance(error, HTTPException)
    code = problems.GENERIC.get(
        error.status_code, HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    )
    found = problems.document(code, error.status_code, error.detail, request.state.context.request_id)
    return _respond(found, error.headers)


async def answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [
        FieldProblem(field=".".join(map(str, one["loc"])), detail=one["msg"], code=one["type"])
        for one in error.errors()
    ]
    detail = "; ".join(f"{fault.field}: {fault.detail}" for fault in faults[:3])
    request_id = request.state.context.request_id
    return _respond(problems.document("invalid_request", 422, detail, request_id, faults))


async def answer_unexpected(request: Request, _: Exception) -> Response:
    # The server logs the traceback; this line ties it to the request.
    logger.error("request %s failed", request.state.context.request_id)
    return _respond(problems.unexpected(request.state.context.request_id))


def _respond(found: Problem, headers: Mapping[str, str] | None = None) -> Response:
    always = {"X-Request-ID": found.request_id}
    return ProblemResponse(found, {**(headers or {}), **always})


class ProblemResponse(Response):
    """Under /v2 in the words of the Open Inference Protocol, which knows no problem documents."""

    def __init__(self, found: Problem, headers: Mapping[str, str]) -> None:
        super().__init__(found.model_dump_json(), found.status, headers, problems.MEDIA_TYPE)
        self._found = found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_open_inference(scope["path"].removeprefix(scope.get("root_path", ""))):
            await super().__call__(scope, receive, send)
            return
        headers = {name: value for name, value in self.headers.items() if not name.startswith("content-")}
        answer = JSONResponse({"error": self._found.detail}, self.status_code, headers)
        await answer(scope, receive, send)
