"""Compression of Open Inference Protocol bodies; a body is decompressed only within limits."""

from __future__ import annotations

import gzip
import zlib

from app.errors import MalformedRequest, TooLarge, UnsupportedFormat

EXPANSION = 8  # limit of expanded ÷ compressed size: images are compressed already, base64 saves a third
SMALL = 64 * 2**10  # bytes that any body may expand to in addition
_WBITS = {"gzip": 31, "deflate": 15}
CODINGS = tuple(_WBITS)


def expand(body: bytes, encoding: str) -> bytes:
    """Decompress a body. Raise UnsupportedFormat, MalformedRequest or TooLarge.

    encoding: the Content-Encoding header.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WBITS:
        raise UnsupportedFormat("Content-Encoding must be gzip, deflate or absent")
    most = EXPANSION * len(body) + SMALL
    expander = zlib.decompressobj(_WBITS[encoding])
    try:
        expanded = expander.decompress(body, most + 1)
    except zlib.error:
        raise MalformedRequest(f"the body is not valid {encoding}") from None
    if len(expanded) > most:
        raise TooLarge(f"the body expands to more than {EXPANSION} times its size")
    if not expander.eof or expander.unused_data:
        raise MalformedRequest(f"the {encoding} body is truncated, or bytes follow its end")
    return expanded


def compress(body: bytes, coding: str) -> bytes:
    """Compress a body with one of CODINGS."""
    return gzip.compress(body, 1, mtime=0) if coding == "gzip" else zlib.compress(body, 1)
