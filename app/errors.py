"""Everything that Leuko raises on purpose; `app.wire.problems` maps it to HTTP.

LeukoError
├── RequestError              the caller can mend it
│   ├── MalformedRequest      400  the bytes are not the protocol they claim to be
│   ├── Unauthenticated       401  no key, or none that is known
│   ├── Forbidden             403  a key, but not for this
│   ├── UnknownModel          404  no model of this name or version
│   ├── NotAcceptable         406  the answer does not exist in what the client accepts
│   ├── BodyTimeout           408  the body came too slowly
│   ├── TooLarge              413  bytes, pixels, parts or archive entries over a limit
│   ├── UnsupportedFormat     415  not a format that is accepted
│   └── Unusable              422  an accepted format that cannot be decoded or used
│       ├── UndecodableImage
│       ├── BadArchive
│       └── BadLabels
├── QueueFull                 429  try again after `retry_after` seconds
├── NotReady                  503  loading, failed or draining
├── DeadlinePassed            504  not done within the request's time
├── EngineError               500  the engine failed on this very image
├── RemoteError               a service that was asked refuses, or does not answer
└── StartupError              the service refuses to start
    ├── BundleError           a file of the bundle is missing, changed or wrong
    └── SettingsError         a setting has no usable value
"""

from __future__ import annotations


class LeukoError(Exception):
    """Base of all; `code` is stable and goes over the wire, `detail` is for people."""

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
    title = "Key needed"


class Forbidden(RequestError):
    code = "forbidden"
    title = "Not with this key"

    def __init__(self, detail: str, key_id: str | None = None) -> None:
        super().__init__(detail)
        self.key_id = key_id


class UnknownModel(RequestError):
    code = "unknown_model"
    title = "Unknown model"


class NotAcceptable(RequestError):
    code = "not_acceptable"
    title = "Not acceptable"


class BodyTimeout(RequestError):
    code = "body_timeout"
    title = "Body too slow"


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


class BadArchive(Unusable):
    code = "bad_archive"
    title = "Archive cannot be used"


class BadLabels(Unusable):
    code = "bad_labels"
    title = "Labels cannot be used"


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
    title = "Deadline passed"


class EngineError(LeukoError):
    code = "engine_error"
    title = "Engine error"


class RemoteError(LeukoError):
    code = "remote_error"
    title = "Service asked in vain"


class StartupError(LeukoError):
    code = "startup_error"
    title = "Cannot start"


class BundleError(StartupError):
    code = "bundle_error"
    title = "Bundle cannot be used"


class SettingsError(StartupError):
    code = "settings_error"
    title = "Setting cannot be used"
