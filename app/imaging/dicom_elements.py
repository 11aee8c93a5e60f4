"""Keep only the data elements of a DICOM file that determine its pixels; drop all patient data.

Implements PS3.5, section 7 (data elements, sequences) and PS3.10, section 7 (file header) in linear time and
without recursion, because a parser's objects can take a hundred times the size of a hostile file. Only the
outermost elements are read, in the ascending order that PS3.5, section 7.1, requires; sequences are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from app.errors import TooLarge, UndecodableImage

MAX_ELEMENTS = 100_000  # in the file, including those in sequences
MAX_DEPTH = 32  # of nested sequences and items

HEAD = 132  # bytes: a preamble of 128, then DICM
MARK = b"DICM"

TRANSFER_SYNTAX = 0x0002_0010
SOP_CLASS = 0x0008_0016
PIXEL_DATA = 0x7FE0_0010
KEPT = frozenset(
    {
        SOP_CLASS,
        0x0028_0002,  # samples per pixel
        0x0028_0004,  # photometric interpretation
        0x0028_0006,  # planar configuration
        0x0028_0008,  # number of frames
        0x0028_0010,  # rows
        0x0028_0011,  # columns
        0x0028_0100,  # bits allocated
        0x0028_0101,  # bits stored
        0x0028_0102,  # high bit
        0x0028_0103,  # pixel representation
        *(0x0028_1101 + channel for channel in range(3)),  # palette descriptors
        *(0x0028_1201 + channel for channel in range(3)),  # palette colours
        PIXEL_DATA,
    }
)

IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"

# The first element of the file header: its tag, type and length, in explicit little endian (PS3.10, 7.1).
_META = b"\x02\0\0\0UL\x04\0"
# Elements with which data sets begin: group length, length to end, character set, image type, dates, class.
_FIRST = frozenset({0x0000, 0x0001, 0x0005, 0x0008, 0x0012, 0x0013, 0x0014, 0x0016, 0x0018})
_FIRST_TYPES = frozenset({b"UL", b"CS", b"DA", b"TM", b"UI"})
_FIRST_LENGTH = 256  # bytes, of any of them

_UNDEFINED = 0xFFFF_FFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
# PS3.5, section 7.1.2: two reserved bytes and a length of 32 bits.
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


@dataclass(frozen=True)
class _Element:
    """An element's tag, and the offsets of its start, its value and its end."""

    tag: int
    start: int
    value: int
    end: int


def is_dicom(data: bytes) -> bool:
    """Tell by PS3.10's DICM prefix."""
    return data[HEAD - len(MARK) : HEAD] == MARK


def add_preamble(data: bytes) -> bytes:
    """Return the file with the preamble that some writers leave out, alone or with DICM; others unchanged."""
    if data.startswith(MARK + _META):
        return bytes(HEAD - len(MARK)) + data
    return bytes(HEAD - len(MARK)) + MARK + data if data.startswith(_META) else data


def is_headless(data: bytes) -> bool:
    """Tell whether this is probably a data set without PS3.10's file header, as old devices write it.

    It then begins with an element of group 0008, such as the character set, in an uncompressed encoding.
    """
    if data[:2] not in (b"\x08\0", b"\0\x08") or len(data) < 8:
        return False
    order = "<" if data[0] else ">"
    element, length = struct.unpack_from(f"{order}HL", data, 2)
    return element in _FIRST and (data[4:6] in _FIRST_TYPES or length <= _FIRST_LENGTH)


def read_syntax(data: bytes) -> tuple[str, int]:
    """Return the transfer syntax and the offset of the data set. Raises UndecodableImage, TooLarge."""
    offset = HEAD
    syntax = ""
    for element in _elements(data, HEAD, implicit=False, order="<", within_group=0x0002):
        offset = element.end
        if element.tag == TRANSFER_SYNTAX:
            syntax = data[element.value : element.end].rstrip(b"\0 ").decode("ascii", "replace")
    return syntax, offset


def strip(data: bytes) -> bytes:
    """Return a DICOM file with only the transfer syntax and the elements in KEPT.

    Raises UndecodableImage, TooLarge.
    """
    syntax, offset = read_syntax(data)
    padded = syntax.encode() + b"\0" * (len(syntax) % 2)
    pieces = [bytes(HEAD - len(MARK)), MARK, struct.pack("<HH2sH", 2, 0x10, b"UI", len(padded)), padded]
    order = ">" if syntax == BIG_ENDIAN else "<"
    for element in _elements(data, offset, implicit=syntax == IMPLICIT, order=order):
        if element.tag in KEPT:
            pieces.append(data[element.start : element.end])
        if element.tag == PIXEL_DATA:
            return b"".join(pieces)
    raise UndecodableImage("the DICOM file has no pixel data")


def _elements(
    data: bytes, offset: int, *, implicit: bool, order: str, within_group: int | None = None
) -> Iterator[_Element]:
    """Yield the outermost elements from `offset` to the end, or to the first of another group.

    implicit: without VR; order: byte order for `struct`. Raises UndecodableImage, TooLarge.
    """
    try:
        yield from _walk(data, offset, implicit, order, within_group)
    except struct.error:
        raise _corrupt() from None


def _walk(
    data: bytes, offset: int, implicit: bool, order: str, within_group: int | None
) -> Iterator[_Element]:
    tag_of, length_of = struct.Struct(f"{order}HH"), struct.Struct(f"{order}L")
    previous = -1
    within: list[bool] = []  # for each open value of undefined length: whether its content is implicit VR
    outer = _Element(0, 0, 0, 0)
    for _ in range(MAX_ELEMENTS):
        if offset == len(data) and not within:
            return
        start = offset
        group, number = tag_of.unpack_from(data, offset)
        if not within and within_group not in (None, group):
            return
        tag = group << 16 | number
        vr = data[offset + 4 : offset + 6]
        if group == 0xFFFE or (within[-1] if within else implicit):
            (length,) = length_of.unpack_from(data, offset + 4)
            offset += 8
        elif vr in _LONG:
            (length,) = length_of.unpack_from(data, offset + 8)
            offset += 12
        else:
            (length,) = struct.unpack_from(f"{order}H", data, offset + 6)
            offset += 8
        if not within:
            if tag <= previous:
                raise _corrupt()
            previous, outer = tag, _Element(tag, start, offset, 0)
        if tag in (_ITEM_END, _SEQUENCE_END):
            if not within:
                raise _corrupt()
            within.pop()
        elif length == _UNDEFINED:
            # PS3.5, section 6.2.2: the content of an UN of undefined length is in implicit VR.
            inherited = within[-1] if within else implicit
            within.append(inherited or vr == b"UN")
            if len(within) > MAX_DEPTH:
                raise TooLarge(f"the DICOM file nests sequences more than {MAX_DEPTH} deep")
        else:
            offset += length
        if offset > len(data):
            raise _corrupt()
        if not within:
            yield _Element(outer.tag, outer.start, outer.value, offset)
    raise TooLarge(f"the DICOM file has more than {MAX_ELEMENTS} elements")


def _corrupt() -> UndecodableImage:
    return UndecodableImage("the DICOM file is truncated or corrupt")
