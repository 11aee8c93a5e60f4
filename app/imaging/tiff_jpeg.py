"""Check a JPEG in a TIFF as a JPEG alone is checked, since libtiff fills what is missing with grey."""

from __future__ import annotations

import re
import struct

from app.errors import TooLarge, UndecodableImage
from app.imaging.strip_metadata import MAX_SCANS

_SEGMENT = re.compile(rb"\xff+([^\x00\xff])(..)", re.DOTALL)  # marker and length
_FRAMES = frozenset(bytes([marker]) for marker in range(0xC0, 0xD0)) - {b"\xc4", b"\xc8", b"\xcc"}


def check(jpeg: bytes, width: int, height: int) -> None:
    """Check the number of scans, the size, at least `width` by `height` pixels, and that the end is there.

    Raises TooLarge, UndecodableImage.
    """
    if jpeg.count(b"\xff\xda") > MAX_SCANS:
        raise TooLarge(f"a JPEG in the TIFF has more than {MAX_SCANS} scans")
    found = _size(jpeg)
    if found[0] < width or found[1] < height or b"\xff\xd9" not in jpeg:
        raise UndecodableImage("a JPEG in the TIFF is truncated")


def _size(jpeg: bytes) -> tuple[int, int]:
    """Return the width and height in the frame header (ISO 10918-1, B.2.2), or zeros."""
    start = 2
    while (segment := _SEGMENT.match(jpeg, start)) is not None:
        if segment[1] in _FRAMES:
            height, width = struct.unpack_from(">HH", jpeg, segment.end() + 1)
            return width, height
        start = segment.end(1) + int.from_bytes(segment[2])
    return 0, 0
