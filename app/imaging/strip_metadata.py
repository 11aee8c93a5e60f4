"""Takes a picture's metadata off before a decoder sees it; only the orientation is remembered.

Comments, colour profiles, EXIF and the like decide nothing about the pixels, may hold a patient's
name, and are parsed by Pillow in Python at a cost that grows faster than the file: one hostile
megabyte can take minutes. JPEG, PNG and GIF are stripped here, in linear time; TIFF and WebP are
read by parsers with bounds of their own.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from app.errors import TooLarge

MAX_PARTS = 100_000  # segments of a JPEG, chunks of a PNG, blocks of a GIF
MAX_SCANS = 100  # of a progressive JPEG, which has ten; each costs a pass over the whole picture

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]")
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xDA)})  # markers with no length: TEM, RST, SOI, EOI
_JPEG_DROPPED = frozenset({0xFE, *range(0xE1, 0xEE), 0xEF})  # all but JFIF and Adobe, which tell the colours
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_GIF_BLOCK = re.compile(rb"[!,;]")  # extension, image, end
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Bare:
    """A picture without its metadata, and the EXIF block that it had."""

    data: bytes
    exif: bytes = b""


def strip(data: bytes, kind: str) -> Bare:
    """kind: Pillow's name of the format. Broken data comes out no better: the decoder will refuse it."""
    strippers = {"JPEG": _strip_jpeg, "PNG": _strip_png, "GIF": _strip_gif}
    return strippers[kind](data) if kind in strippers else Bare(data)


def read_orientation(exif: bytes) -> int:
    """1 to 8 as in the EXIF standard, 4.6.5; 1 where there is none or the block is broken."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for place in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHLH", tiff, place)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # the directory runs past the end
        return 1
    return 1


def _strip_jpeg(data: bytes) -> Bare:
    kept, exif, place = [data[:2]], b"", 2
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(data, place)
        if found is None:
            return Bare(b"".join(kept), exif)
        start, place = found.span()
        marker = data[place - 1]
        if marker == 0xDA:  # start of scan: the picture itself follows
            _check_scans(data, start)
            return Bare(b"".join([*kept, data[start:]]), exif)
        if marker not in _JPEG_BARE:
            place += max(2, int.from_bytes(data[place : place + 2]))
        if marker not in _JPEG_DROPPED:
            kept.append(data[start:place])
        elif marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", start + 4):
            exif = data[start + 4 : place]
    raise TooLarge(f"the JPEG has more than {MAX_PARTS} segments")


def _check_scans(data: bytes, start: int) -> None:
    # in coded data FF is always followed by 00 or a restart, so this counts markers
    if data.count(b"\xff\xda", start) > MAX_SCANS:
        raise TooLarge(f"the JPEG has more than {MAX_SCANS} scans")


def _strip_png(data: bytes) -> Bare:
    kept, exif, place = [data[:8]], b"", 8
    for _ in range(MAX_PARTS):
        if place >= len(data):
            return Bare(b"".join(kept), exif)
        length, name = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        start, place = place, place + 12 + length
        if name in _PNG_KEPT:
            kept.append(data[start:place])
        if name == b"IEND":  # whatever follows is no chunk
            return Bare(b"".join(kept), exif)
        if name == b"eXIf":
            exif = data[start + 8 : place - 4]
    raise TooLarge(f"the PNG has more than {MAX_PARTS} chunks")


def _strip_gif(data: bytes) -> Bare:
    flags = data[10] if len(data) > 10 else 0
    place = 13 + (6 << (flags & 7) if flags & 0x80 else 0)  # header and palette
    kept = [data[:place]]
    for _ in range(MAX_PARTS):
        found = _GIF_BLOCK.search(data, place)
        if found is None or found[0] != b"!":
            return Bare(b"".join([*kept, data[found.start() :] if found else b""]))
        start, place = found.start(), _blocks_end(data, found.end() + 1)
        if data.startswith(b"\xf9", start + 1):  # graphic control: which colour is transparent
            kept.append(data[start:place])
    raise TooLarge(f"the GIF has more than {MAX_PARTS} extensions")


def _blocks_end(data: bytes, place: int) -> int:
    """Where the chain of length-prefixed blocks that starts at `place` ends."""
    while place < len(data) and data[place]:
        place += 1 + data[place]
    return place + 1
