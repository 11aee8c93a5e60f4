"""Content negotiation: which representation or coding a client prefers (RFC 9110, section 12.5)."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import MalformedRequest, NotAcceptable

MOST = 2048  # characters of a header, far more than a browser sends: thousands of ranges would take time


def choose(accept: str, offered: Sequence[str]) -> str:
    """Return the preferred media type of `offered`, the first of equally good ones. Raise NotAcceptable.

    accept: the Accept header; "" accepts everything. Parameters other than `q` are ignored.
    """
    ranges = parse_qualities(accept) or {"*/*": 1.0}
    best = max(offered, key=lambda kind: _quality(kind, ranges))
    if _quality(best, ranges) == 0:
        raise NotAcceptable(f"the response is one of {', '.join(offered)}")
    return best


def accepts_events(accept: str) -> bool:
    """Return whether an Accept header names server-sent events; `*/*` does not ask for them."""
    return parse_qualities(accept).get("text/event-stream", 0.0) > 0


def choose_coding(accept_encoding: str, offered: Sequence[str]) -> str | None:
    """Return the first content coding of `offered` that a client accepts, or None for none.

    accept_encoding: the Accept-Encoding header; a coding counts only if it is named, not by `*`.
    """
    qualities = parse_qualities(accept_encoding)
    return next((coding for coding in offered if qualities.get(coding, 0.0) > 0), None)


def parse_qualities(header: str) -> dict[str, float]:
    """Return quality by value of an Accept-like header: 0 to 1, 1 without `q`, the highest if repeated.

    Raise MalformedRequest for a header that is too long.
    """
    if len(header) > MOST:
        raise MalformedRequest(f"Accept and Accept-Encoding may have {MOST} characters")
    qualities: dict[str, float] = {}
    for element in header.split(","):
        value, *parameters = (text.strip().lower() for text in element.split(";"))
        if value:
            qualities[value] = max(_parse_quality(parameters), qualities.get(value, 0.0))
    return qualities


def _parse_quality(parameters: Sequence[str]) -> float:
    quality = 1.0
    for name, _, value in (parameter.partition("=") for parameter in parameters):
        if name.strip() == "q":
            try:
                quality = min(max(float(value), 0.0), 1.0)
            except ValueError:
                quality = 0.0
    return quality


def _quality(kind: str, ranges: dict[str, float]) -> float:
    """Return the quality by the most specific range that contains a media type."""
    for pattern in (kind, kind.partition("/")[0] + "/*", "*/*"):
        if pattern in ranges:
            return ranges[pattern]
    return 0.0
