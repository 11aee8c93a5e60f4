"""Map errors to HTTP statuses, and make RFC 9457 problem documents of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app import errors
from app.errors import LeukoError
from app.wire.schemas import FieldProblem, ImageProblem, Problem

Fault = ImageProblem | FieldProblem

MEDIA_TYPE = "application/problem+json"

STATUS: Mapping[type[LeukoError], int] = {
    errors.MalformedRequest: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.CrossSite: 403,
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
    "malformed_request": "The request is not valid HTTP, multipart, JSON or tensor data.",
    "unauthenticated": "The request has no key, or an unknown one.",
    "forbidden": "The key lacks the scope that this path requires.",
    "cross_site": "The service has no keys and refuses other names in Host, and web pages of other sites.",
    "not_found": "No resource has this path.",
    "unknown_model": "No model has this name or version; leuko_model_info in /metrics lists the models.",
    "method_not_allowed": "The path does not support this method; the Allow header lists those it does.",
    "not_acceptable": "The Accept header allows none of the formats of the response.",
    "body_timeout": "The head or the body of the request did not arrive in time.",
    "too_large": "Bytes, pixels, images, parts or entries exceed a limit; GET /model lists the limits.",
    "unsupported_format": "The format or encoding of the body, or of an image in it, is not accepted.",
    "invalid_request": "A parameter or field is missing, unknown or of the wrong type; errors names it.",
    "unusable": "The request is well formed, but its content cannot be used; detail says why.",
    "undecodable_image": "The image has an accepted format, but is truncated or corrupt.",
    "bad_archive": "The archive is corrupt, unsafe, or not sorted into one folder per class.",
    "bad_labels": "Labels, predictions or groups do not match the images or the classes.",
    "queue_full": "The queue is full, or too many requests are in flight; retry after Retry-After seconds.",
    "internal_error": "A defect of the service; its log has the request id.",
    "engine_error": "The engine failed on this image.",
    "not_ready": "The model is loading or has failed, or the service is stopping or has no free connection.",
    "deadline_passed": "The response was not ready within the time limit of the request.",
}
# Codes for the errors that Starlette and FastAPI raise.
GENERIC: Mapping[int, str] = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    422: "invalid_request",
    500: "internal_error",
}


# The one code that counts every refusal of a status in the metrics: the first in STATUS.
REASONS: Mapping[int, str] = {status: kind.code for kind, status in reversed([*STATUS.items()])}

_STATUSES = {code: status for status, code in GENERIC.items()} | {
    kind.code: status for kind, status in STATUS.items()
}
_TITLES = {kind.code: kind.title for kind in STATUS}


def status_for(error: LeukoError) -> int:
    """Return the status of the error's class, or of the nearest base class in STATUS; without one, 500."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def status_of(code: str) -> int:
    return _STATUSES[code]


def title_of(code: str) -> str:
    return _TITLES.get(code) or code.replace("_", " ").capitalize()


def uri(code: str, prefix: str = "") -> str:
    """Return the path of a code's description. prefix: of the paths that the client sees."""
    return f"{prefix}/problems/{code}"


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


def image_problem(error: LeukoError, index: int, filename: str | None, prefix: str = "") -> ImageProblem:
    return ImageProblem(
        type=uri(error.code, prefix),
        title=error.title,
        status=status_for(error),
        detail=error.detail,
        code=error.code,
        index=index,
        filename=filename,
    )


def problem(error: LeukoError, request_id: str, faults: Sequence[Fault] = ()) -> Problem:
    return document(error.code, status_for(error), error.detail, request_id, faults)


def below(problem: Problem, prefix: str) -> Problem:
    """Return the problem with the `type` that leads to its description below a prefix."""
    return problem.model_copy(update={"type": uri(problem.code, prefix)}) if prefix else problem


def unexpected(request_id: str) -> Problem:
    detail = "The service failed; its log has this request id."
    return document("internal_error", 500, detail, request_id)
