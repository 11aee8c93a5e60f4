"""Remove an image's metadata before it is decoded; the EXIF block is kept, for the orientation, and sBIT.

Comments, colour profiles, EXIF and similar blocks do not affect the pixels and may hold a patient's name.
Pillow parses them in Python in more than linear time: one hostile megabyte can take minutes. JPEG, PNG and
GIF are stripped here, in linear time; the parsers of TIFF and WebP have limits of their own.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from app.errors import TooLarge

MAX_PARTS = 100_000  # segments of a JPEG, chunks of a PNG, blocks of a GIF
MAX_SCANS = 100  # a progressive JPEG has about ten; each costs a pass over the whole image

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]")
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xDA)})  # markers with no length: TEM, RST, SOI, EOI
_JPEG_DROPPED = frozenset({0xFE, *range(0xE1, 0xEE), 0xEF})  # all but JFIF and Adobe: they define the colours
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_GIF_BLOCK = re.compile(rb"[!,;]")  # extension, image, end
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Bare:
    """An image file without its metadata, its EXIF block, and a PNG's chunk sBIT (bits of each channel)."""

    data: bytes
    exif: bytes = b""
    bits: bytes = b""


def strip(data: bytes, kind: str) -> Bare:
    """Remove the metadata of a JPEG, PNG or GIF; return other formats unchanged.

    kind: Pillow's name of the format. Corrupt data stays corrupt: the decoder refuses it. Raises TooLarge.
    """
    strippers = {"JPEG": _strip_jpeg, "PNG": _strip_png, "GIF": _strip_gif}
    return strippers[kind](data) if kind in strippers else Bare(data)


def read_orientation(exif: bytes) -> int:
    """Return 1 to 8 as in the EXIF standard, 4.6.5; 1 if the block is broken or has no orientation."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for offset in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHLH", tiff, offset)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # the directory extends past the end
        return 1
    return 1


def _strip_jpeg(data: bytes) -> Bare:
    pieces, exif, offset = [data[:2]], b"", 2
    for _ in range(MAX_PARTS):
        match = _JPEG_MARKER.search(data, offset)
        if match is None:
            return Bare(b"".join(pieces), exif)
        start, offset = match.span()
        marker = data[offset - 1]
        if marker == 0xDA:  # start of scan: the image data follows
            _check_scans(data, start)
            return Bare(b"".join([*pieces, data[start:]]), exif)
        if marker not in _JPEG_BARE:
            offset += max(2, int.from_bytes(data[offset : offset + 2]))
        if marker not in _JPEG_DROPPED:
            pieces.append(data[start:offset])
        elif marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", start + 4):
            exif = data[start + 4 : offset]
    raise TooLarge(f"the JPEG has more than {MAX_PARTS} segments")


def _check_scans(data: bytes, start: int) -> None:
    # In entropy-coded data, FF is always followed by 00 or a restart marker, so this counts SOS markers only.
    if data.count(b"\xff\xda", start) > MAX_SCANS:
        raise TooLarge(f"the JPEG has more than {MAX_SCANS} scans")


def _strip_png(data: bytes) -> Bare:
    pieces, exif, bits, offset = [data[:8]], b"", b"", 8
    for _ in range(MAX_PARTS):
        if offset >= len(data):
            return Bare(b"".join(pieces), exif, bits)
        length, name = int.from_bytes(data[offset : offset + 4]), data[offset + 4 : offset + 8]
        start, offset = offset, offset + 12 + length
        if name in _PNG_KEPT:
            pieces.append(data[start:offset])
        if name == b"IEND":  # the data that follows is not part of the PNG
            return Bare(b"".join(pieces), exif, bits)
        if name == b"eXIf":
            exif = data[start + 8 : offset - 4]
        elif name == b"sBIT":
            bits = data[start + 8 : offset - 4][:4]
    raise TooLarge(f"the PNG has more than {MAX_PARTS} chunks")


def _strip_gif(data: bytes) -> Bare:
    flags = data[10] if len(data) > 10 else 0
    offset = 13 + (6 << (flags & 7) if flags & 0x80 else 0)  # header and palette
    pieces = [data[:offset]]
    for _ in range(MAX_PARTS):
        match = _GIF_BLOCK.search(data, offset)
        if match is None or match[0] != b"!":
            return Bare(b"".join([*pieces, data[match.start() :] if match else b""]))
        start, offset = match.start(), _blocks_end(data, match.end() + 1)
        if data.startswith(b"\xf9", start + 1):  # graphic control extension: the transparent colour
            pieces.append(data[start:offset])
    raise TooLarge(f"the GIF has more than {MAX_PARTS} extensions")


def _blocks_end(data: bytes, offset: int) -> int:
    """Return the offset after the chain of length-prefixed blocks that starts at `offset`."""
    while offset < len(data) and data[offset]:
        offset += 1 + data[offset]
    return offset + 1
