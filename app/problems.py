"""The one table from errors to HTTP, and RFC 9457 problem documents for everything that goes wrong."""

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
from app.errors import LeukoError
from app.protocols import open_inference
from app.schemas import FieldProblem, ImageProblem, Problem

logger = logging.getLogger(__name__)

Fault = ImageProblem | FieldProblem

MEDIA_TYPE = "application/problem+json"

STATUS: Mapping[type[LeukoError], int] = {
    errors.MalformedRequest: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.UnknownModel: 404,
    errors.NotAcceptable: 406,
    errors.BodyTimeout: 408,
    errors.TooLarge: 413,
    errors.UnsupportedFormat: 415,
    errors.Unusable: 422,
    errors.UndecodableImage: 422,
    errors.BadArchive: 422,
    errors.BadLabels: 422,
    errors.EngineError: 500,
    errors.QueueFull: 429,
    errors.NotReady: 503,
    errors.DeadlinePassed: 504,
}
MEANINGS: Mapping[str, str] = {
    "malformed_request": "The bytes are not the HTTP, multipart or JSON that they claim to be.",
    "unauthenticated": "The request shows no key, or none that is known.",
    "forbidden": "The key that was shown is not for this route.",
    "not_found": "There is nothing at this path.",
    "unknown_model": "There is no model of this name or version; leuko_model_info in /metrics lists them.",
    "method_not_allowed": "The path exists; the Allow header says which methods it has.",
    "not_acceptable": "The answer does not exist in any format that the Accept header allows.",
    "body_timeout": "The body did not arrive in time.",
    "too_large": "Bytes, pixels, parts or archive entries are over a limit; GET /model lists the limits.",
    "unsupported_format": "The body, or an image in it, is not in a format that is accepted.",
    "invalid_request": "A parameter or field is missing, unknown or of the wrong type; errors says which.",
    "unusable": "The request is well formed, but nothing can be done with it.",
    "undecodable_image": "The image is of an accepted format, but truncated or corrupt.",
    "bad_archive": "The archive is broken, unsafe, or not sorted into one folder per class.",
    "bad_labels": "Labels, predictions or groups do not fit the images or the classes.",
    "queue_full": "More work is waiting than may wait; try again after Retry-After seconds.",
    "internal_error": "A defect of the service; its log has the request id.",
    "engine_error": "The network failed on this very image.",
    "not_ready": "The model is loading, has failed, or the service is stopping.",
    "deadline_passed": "The answer was not ready within the time that a request may take.",
}
# Errors that are not Leuko's own: Starlette's and FastAPI's.
GENERIC: Mapping[int, str] = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    422: "invalid_request",
    500: "internal_error",
}


# The code that stands for all refusals of a status, for metrics: the first of STATUS.
REASONS: Mapping[int, str] = {status: kind.code for kind, status in reversed([*STATUS.items()])}

_STATUSES = {code: status for status, code in GENERIC.items()} | {
    kind.code: status for kind, status in STATUS.items()
}
_TITLES = {kind.code: kind.title for kind in STATUS}


def status_of(code: str) -> int:
    return _STATUSES[code]


def title_of(code: str) -> str:
    return _TITLES.get(code) or code.replace("_", " ").capitalize()


def uri(code: str) -> str:
    return f"/problems/{code}"


def document(code: str, status: int, detail: str, request_id: str, faults: Sequence[Fault] = ()) -> Problem:
    return Problem(
        type=uri(code),
        title=title_of(code),
        status=status,
        detail=detail,
        code=code,
        request_id=request_id,
        errors=list(faults),
    )


def image_problem(error: LeukoError, index: int, filename: str | None) -> ImageProblem:
    return ImageProblem(
        type=uri(error.code),
        title=error.title,
        status=STATUS[type(error)],
        detail=error.detail,
        code=error.code,
        index=index,
        filename=filename,
    )


def problem(error: LeukoError, request_id: str, faults: Sequence[Fault] = ()) -> Problem:
    return document(error.code, STATUS[type(error)], error.detail, request_id, faults)


def unexpected(request_id: str) -> Problem:
    detail = "The service failed; its log has this request id."
    return document("internal_error", 500, detail, request_id)


def answer(error: LeukoError, request_id: str, faults: Sequence[ImageProblem] = ()) -> Response:
    """What a client gets instead of an answer; `faults` itemises."""
    headers = {}
    if isinstance(error, errors.QueueFull | errors.NotReady):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, section 11.6.1
    return _respond(problem(error, request_id, faults), headers)


async def answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LeukoError)
    return answer(error, request.state.request_id)


async def answer_http(request: Request, error: Exception) -> Response:
    """Starlette's own errors; their headers, such as Allow, are kept."""
    assert isinstance(error, HTTPException)
    code = GENERIC.get(error.status_code, HTTPStatus(error.status_code).phrase.lower().replace(" ", "_"))
    found = document(code, error.status_code, error.detail, request.state.request_id)
    return _respond(found, error.headers)


async def answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [
        FieldProblem(field=".".join(map(str, one["loc"])), detail=one["msg"], code=one["type"])
        for one in error.errors()
    ]
    detail = "; ".join(f"{fault.field}: {fault.detail}" for fault in faults[:3])
    return _respond(document("invalid_request", 422, detail, request.state.request_id, faults))


async def answer_unexpected(request: Request, _: Exception) -> Response:
    # The server logs the traceback; this line ties it to the request.
    logger.error("request %s failed", request.state.request_id)
    return _respond(unexpected(request.state.request_id))


def _respond(found: Problem, headers: Mapping[str, str] | None = None) -> Response:
    always = {"X-Request-ID": found.request_id}
    return ProblemResponse(found, {**(headers or {}), **always})


class ProblemResponse(Response):
    """Under /v2 in the words of the Open Inference Protocol, which knows no problem documents."""

    def __init__(self, found: Problem, headers: Mapping[str, str]) -> None:
        super().__init__(found.model_dump_json(), found.status, headers, MEDIA_TYPE)
        self._found = found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not open_inference(scope["path"].removeprefix(scope.get("root_path", ""))):
            await super().__call__(scope, receive, send)
            return
        headers = {name: value for name, value in self.headers.items() if not name.startswith("content-")}
        answer = JSONResponse({"error": self._found.detail}, self.status_code, headers)
        await answer(scope, receive, send)
