"""Read the tags of a TIFF's pages, and write a TIFF with the tags that a decoder needs.

Implements TIFF 6.0, section 2, and BigTIFF. A page's values are read one tag at a time, with a limit on their
number, so that a hostile file costs no more than its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from app.errors import UndecodableImage

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
DESCRIPTION, STRIP_OFFSETS, ORIENTATION, SAMPLES, STRIP_ROWS, STRIP_BYTES = 270, 273, 274, 277, 278, 279
MAX_VALUE, PLANAR, PREDICTOR, COLOURS = 281, 284, 317, 320
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, INK_SET, EXTRAS = 322, 323, 324, 325, 332, 338
SUBFILE, FORMAT, LEAST, GREATEST, JPEG_TABLES = 254, 339, 340, 341, 347
YCBCR_COEFFICIENTS, YCBCR_SUBSAMPLING, REFERENCE_BLACK_WHITE = 529, 530, 532
IMAGEJ_COUNTS, IMAGEJ_METADATA = 50838, 50839

# TIFF 6.0, section 2, and BigTIFF: type → its letter in `struct`.
_TYPES = {1: "B", 2: "s", 3: "H", 4: "L", 5: "LL", 6: "b", 7: "s", 8: "h", 9: "l", 10: "ll"}
_TYPES |= {11: "f", 12: "d", 13: "L", 16: "Q", 17: "q", 18: "Q"}
_RATIONALS = frozenset({5, 10})

Number = int | float


@dataclass(frozen=True)
class Page:
    """One image file directory. start: its offset in the file; order: byte order, as in `struct`."""

    data: bytes
    start: int
    order: str
    big: bool

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def numbers(self, tag: int, default: Sequence[Number] = (), *, most: int = 1024) -> tuple[Number, ...]:
        """Return the first `most` values of a tag, or `default` without it. Raises UndecodableImage."""
        if tag not in self._entries:
            return tuple(default)
        kind, count, place = self._entries[tag]
        letters = _TYPES.get(kind)
        if letters is None or letters == "s" or count < 1:
            raise UndecodableImage("a tag of the TIFF has an unsupported type")
        values = struct.unpack_from(
            f"{self.order}{min(count, most) * len(letters)}{letters[0]}", self.data, place
        )
        if kind in _RATIONALS:
            return tuple(a / b for a, b in zip(values[::2], values[1::2], strict=True))
        return values

    def integer(self, tag: int, default: int | None = None) -> int:
        """Return the first value of a tag, or `default` without it. Raises UndecodableImage."""
        values = self.numbers(tag, () if default is None else (default,), most=1)
        if not values or not isinstance(values[0], int):
            raise UndecodableImage(f"the TIFF lacks a tag that it needs, {tag}")
        return values[0]

    def integers(self, tag: int, default: Sequence[int] = (), *, most: int = 1024) -> tuple[int, ...]:
        values = self.numbers(tag, default, most=most)
        if not all(isinstance(value, int) for value in values):
            raise UndecodableImage("a tag of the TIFF has an unsupported type")
        return tuple(int(value) for value in values)

    def octets(self, tag: int) -> bytes:
        """Return the bytes of a tag of bytes or text; empty without it. Raises UndecodableImage."""
        kind, count, place = self._entries.get(tag, (7, 0, 0))
        if place + count > len(self.data):
            raise UndecodableImage("the TIFF is truncated or corrupt")
        return self.data[place : place + count] if _TYPES.get(kind) in ("s", "B") else b""

    @cached_property
    def next(self) -> int:
        """The offset of the next page, 0 for none."""
        place = self.start + self._head + self._size * self._count
        (offset,) = struct.unpack_from(self.order + ("Q" if self.big else "L"), self.data, place)
        return int(offset)

    @property
    def _head(self) -> int:
        return 8 if self.big else 2

    @property
    def _size(self) -> int:
        return 20 if self.big else 12

    @cached_property
    def _count(self) -> int:
        (count,) = struct.unpack_from(self.order + ("Q" if self.big else "H"), self.data, self.start)
        if count * self._size > len(self.data):
            raise UndecodableImage("the TIFF is truncated or corrupt")
        return int(count)

    @cached_property
    def _entries(self) -> dict[int, tuple[int, int, int]]:
        """Tag → type, number of values, and the offset of the first."""
        entries: dict[int, tuple[int, int, int]] = {}
        head, inline = ("HHQ", 8) if self.big else ("HHL", 4)
        for number in range(self._count):
            place = self.start + self._head + number * self._size
            tag, kind, count = struct.unpack_from(self.order + head, self.data, place)
            if tag in entries:  # readers differ in which of the two they take
                raise UndecodableImage("a tag of the TIFF occurs twice")
            place += self._size - inline
            if count * struct.calcsize("=" + _TYPES.get(kind, "s")) > inline:
                (place,) = struct.unpack_from(self.order + ("Q" if self.big else "L"), self.data, place)
            entries[tag] = kind, count, place
        return entries


def pages(data: bytes) -> Iterator[Page]:
    """Yield the pages of a TIFF; its sub-images (SubIFDs) are not pages. Raises struct.error if it is cut."""
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
    seen: set[int] = set()
    while start and start not in seen:
        seen.add(start)
        page = Page(data, start, order, big)
        yield page
        start = page.next


def write(tags: Mapping[int, Sequence[int] | bytes], parts: Sequence[bytes], *, tiled: bool) -> bytes:
    """Return a TIFF of one page, in little-endian order, with these tags and strips or tiles.

    tags: without the offsets and sizes of the parts; numbers are stored as LONG.
    """
    sizes = [len(part) for part in parts]
    offsets = [8, *(8 + size for size in accumulate(sizes))]
    where = (TILE_OFFSETS, TILE_BYTES) if tiled else (STRIP_OFFSETS, STRIP_BYTES)
    values = {**tags, where[0]: offsets[:-1], where[1]: sizes}
    entries, tables, end = b"", b"", offsets[-1]
    for tag, value in sorted(values.items()):
        kind, body = (7, value) if isinstance(value, bytes) else (4, struct.pack(f"<{len(value)}L", *value))
        entries += struct.pack("<HHL", tag, kind, len(value))
        if len(body) <= 4:
            entries += body.ljust(4, b"\0")
        else:
            entries += struct.pack("<L", end + len(tables))
            tables += body + bytes(len(body) % 2)
    start, count = struct.pack("<L", end + len(tables)), struct.pack("<H", len(values))
    return b"".join([b"II*\0", start, *parts, tables, count, entries, bytes(4)])
