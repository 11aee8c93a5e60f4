"""The exceptions that the clients raise.

LeukoError
├── TransportError      no response
├── UnexpectedAnswer    a response that is not Leuko's
├── UnreadableImage     a file of predict_many that could not be read, and was not sent
└── ProblemError        the service refused (RFC 9457): status, code, title, detail, request_id, errors
    ├── Unauthenticated, Forbidden, TooLarge, UnsupportedFormat
    ├── Unusable        UndecodableImage, BadArchive, BadLabels
    ├── QueueFull, NotReady, DeadlinePassed
    └── ServerError
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class LeukoError(Exception):
    pass


class TransportError(LeukoError):
    pass


class UnexpectedAnswer(LeukoError):
    pass


class UnreadableImage(LeukoError):
    pass


class ProblemError(LeukoError):
    """retry_after: seconds, if the service sent it. errors: one mapping for each bad image or field."""

    def __init__(self, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = int(problem["status"])
        self.code = str(problem["code"])
        self.title = str(problem["title"])
        self.detail = str(problem["detail"])
        self.request_id: str | None = problem.get("request_id")
        self.errors: Sequence[Mapping[str, Any]] = problem.get("errors", [])
        self.retry_after = retry_after
        super().__init__(f"{self.title} ({self.status}): {self.detail}")


class Unauthenticated(ProblemError):
    pass


class Forbidden(ProblemError):
    pass


class TooLarge(ProblemError):
    pass


class UnsupportedFormat(ProblemError):
    pass


class Unusable(ProblemError):
    pass


class UndecodableImage(Unusable):
    pass


class BadArchive(Unusable):
    pass


class BadLabels(Unusable):
    pass


class QueueFull(ProblemError):
    pass


class NotReady(ProblemError):
    pass


class DeadlinePassed(ProblemError):
    pass


class ServerError(ProblemError):
    pass


BY_CODE: Mapping[str, type[ProblemError]] = {
    "unauthenticated": Unauthenticated,
    "forbidden": Forbidden,
    "too_large": TooLarge,
    "unsupported_format": UnsupportedFormat,
    "unusable": Unusable,
    "invalid_request": Unusable,
    "undecodable_image": UndecodableImage,
    "bad_archive": BadArchive,
    "bad_labels": BadLabels,
    "queue_full": QueueFull,
    "not_ready": NotReady,
    "deadline_passed": DeadlinePassed,
}


def problem_error(problem: Mapping[str, Any], retry_after: float | None = None) -> ProblemError:
    """Return the exception for a problem document; ServerError or ProblemError if its code is unknown."""
    other = ServerError if int(problem["status"]) >= 500 else ProblemError
    return BY_CODE.get(str(problem["code"]), other)(problem, retry_after)
