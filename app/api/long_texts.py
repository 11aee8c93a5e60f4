"""Long texts in JSON, such as images in base64: they are cut out before a parser sees them.

A parser would hold the interpreter lock while it copies hundreds of megabytes. All here work in slices.
"""

from __future__ import annotations

import base64

from app.api.json_bodies import count_values
from app.errors import MalformedRequest, TooLarge
from app.units import MIB

LONG = 1024  # bytes of a text that is cut out
SLICE = MIB // 4  # bytes; a multiple of 4, as base64 needs
OTHER_VALUES = 4096  # most values besides the texts
OTHER_BYTES = MIB // 2  # most bytes besides them
_ESCAPES = 64  # most backslashes in a row before a quote; base64 needs none
_QUOTE, _BACKSLASH = b'"', b"\\"


def cut_out(body: bytes, size: int, most_texts: int) -> tuple[bytes, dict[str, memoryview]]:
    """Return the JSON in the first `size` bytes with names in place of long texts, and the texts by name.

    A name is longer than LONG, so that a field which accepts fewer characters refuses it too. Raise TooLarge
    if there is more than `most_texts` texts and a little besides, MalformedRequest for a text with no end.
    """
    too_large = TooLarge(f"the JSON has more than {most_texts} texts, or too much besides them")
    rest: list[bytes] = []
    texts: dict[str, memoryview] = {}
    view = memoryview(body)
    position = kept = quotes = length = 0
    while (start := _find(body, position, size)) >= 0:
        end = _end(body, start + 1, size)
        position, quotes = end + 1, quotes + 2
        if end - start - 1 > LONG:
            name = f"{len(texts):.<{LONG + 1}}"  # a full stop is no letter of base64
            texts[name] = view[start + 1 : end]
            rest += (body[kept : start + 1], name.encode())
            length += start + 1 - kept + len(name)
            kept = end
        if quotes > 2 * (most_texts + OTHER_VALUES):
            raise too_large
    if length + size - kept > 2 * LONG * most_texts + OTHER_BYTES:
        raise too_large
    document = b"".join([*rest, body[kept:size]])
    if count_values(document) > most_texts + OTHER_VALUES:
        raise too_large
    return document, texts


def decode_base64(text: bytes | memoryview) -> bytes:
    """Decode RFC 4648's base64, with `/` or, as some encoders write it, `\\/`. Raise ValueError."""
    pieces = []
    for start in range(0, len(text), SLICE):
        piece = bytes(text[start : start + SLICE])
        if _BACKSLASH in piece:
            return decode_base64(_unescape(text))
        if b"=" in piece and start + SLICE < len(text):
            raise ValueError("padding before the end")
        pieces.append(base64.b64decode(piece, validate=True))
    return b"".join(pieces)


def _unescape(text: bytes | memoryview) -> bytes:
    """Turn `\\/` into `/`. Raise ValueError for any other escape."""
    plain = bytes(text).replace(b"\\/", b"/")
    if _BACKSLASH in plain:
        raise ValueError("an escape that base64 never needs")
    return plain


def _find(body: bytes, start: int, stop: int) -> int:
    """Return the position of the next quote before `stop`, -1 if there is none."""
    for begin in range(start, stop, SLICE):
        position = body.find(_QUOTE, begin, min(begin + SLICE, stop))
        if position >= 0:
            return position
    return -1


def _end(body: bytes, start: int, stop: int) -> int:
    """Return the position of the quote that ends the text which begins at `start`."""
    position = _find(body, start, stop)
    while position >= 0:
        before = body[max(start, position - _ESCAPES) : position]
        escapes = len(before) - len(before.rstrip(_BACKSLASH))
        if escapes == _ESCAPES:
            raise MalformedRequest(f"a text of the JSON has {_ESCAPES} backslashes in a row")
        if escapes % 2 == 0:
            return position
        position = _find(body, position + 1, stop)
    raise MalformedRequest("body: Invalid JSON: a text has no end")
