"""The one table from errors to HTTP statuses, and RFC 9457 problem documents."""

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
