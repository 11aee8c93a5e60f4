"""What a client would rather have (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import NotAcceptable


def choose(accept: str, offered: Sequence[str]) -> str:
    """The media type of `offered`, the first where several are as good. Raises NotAcceptable.

    accept: the header; without one anything will do. Parameters other than `q` are passed over.
    """
    ranges = [_parse(one) for one in accept.split(",") if one.strip()] or [("*/*", 1.0)]
    best = max(offered, key=lambda kind: _quality(kind, ranges))
    if _quality(best, ranges) == 0:
        raise NotAcceptable(f"the answer is one of {', '.join(offered)}")
    return best


def _parse(text: str) -> tuple[str, float]:
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = 1.0
    for name, _, value in (parameter.partition("=") for parameter in parameters):
        if name.strip() == "q":
            try:
                quality = min(max(float(value), 0.0), 1.0)
            except ValueError:
                quality = 0.0
    return kind, quality


def _quality(kind: str, ranges: Sequence[tuple[str, float]]) -> float:
    """By the most specific range that it is in."""
    for pattern in (kind, kind.partition("/")[0] + "/*", "*/*"):
        found = [quality for name, quality in ranges if name == pattern]
        if found:
            return max(found)
    return 0.0
