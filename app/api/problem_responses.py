"""Problem documents as responses, and the exception handlers of the application."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from app import errors, validation
from app.edge.methods import allowed
from app.edge.paths import is_open_inference
from app.edge.prefix import prefix_of
from app.errors import LeukoError
from app.wire import problems
from app.wire.schemas import FieldProblem, ImageProblem, Problem

logger = logging.getLogger(__name__)


def render(error: LeukoError, request_id: str, faults: Sequence[ImageProblem] = ()) -> Response:
    """Return the response to a failed request. faults: the problem of each image."""
    headers = {}
    if isinstance(error, errors.QueueFull | errors.NotReady):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, section 11.6.1
    return _render(problems.problem(error, request_id, faults), headers)


async def handle_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LeukoError)
    return render(error, request.state.context.request_id)


async def handle_http(request: Request, error: Exception) -> Response:
    """Handle Starlette's own errors; keep their headers, with HEAD and OPTIONS in Allow."""
    assert isinstance(error, HTTPException)
    code = problems.GENERIC.get(
        error.status_code, HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    )
    problem = problems.document(code, error.status_code, error.detail, request.state.context.request_id)
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = allowed(headers["Allow"].split(", "))
    return _render(problem, headers)


async def handle_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [FieldProblem(**vars(fault)) for fault in validation.faults(error.errors())]
    detail = "; ".join(f"{fault.field}: {fault.detail}" for fault in faults[:3])
    request_id = request.state.context.request_id
    return _render(problems.document("invalid_request", 422, detail, request_id, faults))


async def handle_unexpected(request: Request, _: Exception) -> Response:
    # uvicorn logs the traceback; this line adds the request id.
    logger.error("request %s failed", request.state.context.request_id)
    return _render(problems.unexpected(request.state.context.request_id))


def _render(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    # Bytes that are no request are answered outside the exchange, which adds this to all other responses.
    always = {"X-Request-ID": problem.request_id, "Cache-Control": "no-store"}
    return ProblemResponse(problem, {**(headers or {}), **always})


class ProblemResponse(Response):
    """A problem document; under /v2 the error object of the Open Inference Protocol instead."""

    def __init__(self, problem: Problem, headers: Mapping[str, str]) -> None:
        super().__init__(problem.model_dump_json(), problem.status, headers, problems.MEDIA_TYPE)
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_open_inference(scope["path"].removeprefix(scope.get("root_path", ""))):
            self._lead_below(prefix_of(scope))
            await super().__call__(scope, receive, send)
            return
        headers = {name: value for name, value in self.headers.items() if not name.startswith("content-")}
        response = JSONResponse({"error": self._problem.detail}, self.status_code, headers)
        await response(scope, receive, send)

    def _lead_below(self, prefix: str) -> None:
        if prefix:
            self.body = problems.below(self._problem, prefix).model_dump_json().encode()
            self.headers["content-length"] = str(len(self.body))
