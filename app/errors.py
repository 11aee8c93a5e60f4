"""All exceptions that Leuko raises on purpose; `app.wire.problems` maps them to HTTP.

LeukoError
├── RequestError              the client can correct the request
│   ├── MalformedRequest      400  not valid HTTP, multipart, JSON or tensor data
│   ├── Unauthenticated       401  no key, or an unknown one
│   ├── Forbidden             403  the key lacks the scope
│   ├── CrossSite             403  without keys: another Host, or a browser's request for another site's page
│   ├── UnknownModel          404  no model of this name or version
│   ├── NotAcceptable         406  the Accept header allows no format of the response
│   ├── BodyTimeout           408  the head or the body of the request arrived too slowly
│   ├── TooLarge              413  bytes, pixels, images, parts or archive entries over a limit
│   ├── UnsupportedFormat     415  a format or content encoding that is not accepted
│   └── Unusable              422  an accepted format, but the content cannot be used
│       ├── UndecodableImage
│       ├── Unreadable              a file or folder of this machine
│       ├── BadArchive
│       └── BadLabels
├── QueueFull                 429  the queue, or the limit on requests in flight, is reached
├── EngineError               500  the engine failed on this image
├── NotReady                  503  loading, failed, draining, or too many connections
├── DeadlinePassed            504  not finished within the time limit of the request
├── RemoteError               the service at `--url` returned an error or did not respond
└── StartupError              the service or a command cannot start
    ├── BundleError           a bundle or reference file is missing, changed or invalid
    └── SettingsError         a setting, or the file that it names, has no usable value

RemoteError and StartupError have no HTTP status: they end a command or a process, never a request.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name this file in an OSError of the block: a write to a full disk names none, a draft another."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


class LeukoError(Exception):
    """Base class. `code` is stable and sent to clients; `detail` is for people."""

    code = "error"
    title = "Error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class RequestError(LeukoError):
    pass


class MalformedRequest(RequestError):
    code = "malformed_request"
    title = "Malformed request"


class Unauthenticated(RequestError):
    code = "unauthenticated"
    title = "Valid key required"


class Forbidden(RequestError):
    code = "forbidden"
    title = "Insufficient scope"

    def __init__(self, detail: str, key_id: str | None = None) -> None:
        super().__init__(detail)
        self.key_id = key_id


class CrossSite(RequestError):
    code = "cross_site"
    title = "Request of another site"


class UnknownModel(RequestError):
    code = "unknown_model"
    title = "Unknown model"


class NotAcceptable(RequestError):
    code = "not_acceptable"
    title = "Not acceptable"


class BodyTimeout(RequestError):
    code = "body_timeout"
    title = "Request timeout"


class TooLarge(RequestError):
    code = "too_large"
    title = "Too large"


class UnsupportedFormat(RequestError):
    code = "unsupported_format"
    title = "Unsupported format"


class Unusable(RequestError):
    code = "unusable"
    title = "Unusable input"


class UndecodableImage(Unusable):
    code = "undecodable_image"
    title = "Image cannot be decoded"


class Unreadable(Unusable):
    """A file or folder that the operating system does not let us read; of commands only."""


class BadArchive(Unusable):
    code = "bad_archive"
    title = "Invalid archive"


class BadLabels(Unusable):
    code = "bad_labels"
    title = "Invalid labels"


class QueueFull(LeukoError):
    code = "queue_full"
    title = "Queue full"

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class NotReady(LeukoError):
    code = "not_ready"
    title = "Not ready"

    def __init__(self, detail: str, retry_after: int = 5) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class DeadlinePassed(LeukoError):
    code = "deadline_passed"
    title = "Deadline exceeded"


class EngineError(LeukoError):
    code = "engine_error"
    title = "Engine error"


class RemoteError(LeukoError):
    code = "remote_error"
    title = "Remote service error"


class StartupError(LeukoError):
    code = "startup_error"
    title = "Cannot start"


class BundleError(StartupError):
    code = "bundle_error"
    title = "Invalid bundle"


class SettingsError(StartupError):
    code = "settings_error"
    title = "Invalid setting"
