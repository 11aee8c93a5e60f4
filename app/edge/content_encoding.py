"""Compressed bodies, which only the Open Inference Protocol has; expanded within bounds."""

from __future__ import annotations

import gzip
import zlib

from app.errors import MalformedRequest, TooLarge, UnsupportedFormat

EXPANSION = 8  # times its size, at most: images are compressed already, base64 gives a third
SMALL = 64 * 2**10  # bytes that anything may expand to
_FORMATS = {"gzip": 31, "deflate": 15}  # zlib's wbits


def expand(body: bytes, encoding: str) -> bytes:
    """encoding: the header Content-Encoding. Raises UnsupportedFormat, MalformedRequest, TooLarge."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _FORMATS:
        raise UnsupportedFormat("Content-Encoding is gzip or deflate here, or none")
    most = EXPANSION * len(body) + SMALL
    expander = zlib.decompressobj(_FORMATS[encoding])
    try:
        found = expander.decompress(body, most + 1)
    except zlib.error:
        raise MalformedRequest(f"the body is not {encoding}") from None
    if len(found) > most:
        raise TooLarge(f"the body expands to more than {EXPANSION} times its size")
    if not expander.eof or expander.unused_data:
        raise MalformedRequest(f"the {encoding} body is cut, or something follows it")
    return found


def compress(body: bytes, accept: str) -> tuple[bytes, str | None]:
    """In the first of gzip and deflate that the header Accept-Encoding names, and which."""
    accepted = {
        name.strip().lower()
        for name, _, quality in (one.partition(";") for one in accept.split(","))
        if quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    }
    if "gzip" in accepted:
        return gzip.compress(body, 1, mtime=0), "gzip"
    if "deflate" in accepted:
        return zlib.compress(body, 1), "deflate"
    return body, None
