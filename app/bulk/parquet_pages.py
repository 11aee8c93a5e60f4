"""The sizes of a Parquet column's pages, read from their headers before anything is decompressed.

Arrow allocates what a page's header claims. A cell is at most as large as the largest page of its column,
also where cells share bytes (dictionary, delta encoding).
Source: https://github.com/apache/parquet-format, PageHeader, and the compact protocol of Apache Thrift.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from pyarrow import ArrowInvalid

from app.units import MIB

HEADER = 8192  # read at first for a header; it may hold the least and the largest cell of its page
MOST_HEADER = 16 * MIB  # Arrow's own limit
STOP, TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(13)
DEPTH = 8  # of structures in a header; the format has three


def largest_page(file: BinaryIO, column: Any) -> int:
    """Return the size in bytes of the largest page, compressed or not. column: pyarrow's ColumnChunkMetaData.

    Raise ArrowInvalid if a header cannot be read.
    """
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    return max((size for size in _pages(file, start, start + column.total_compressed_size)), default=0)


def _pages(file: BinaryIO, start: int, end: int) -> Iterator[int]:
    while start < end:
        sizes, length = _read_header(file, start, end)
        unpacked, packed = sizes
        if unpacked < 0 or packed < 0:
            raise ArrowInvalid("a page of the Parquet file has a negative size")
        yield max(unpacked, packed)
        start += length + packed


def _read_header(file: BinaryIO, start: int, end: int) -> tuple[tuple[int, int], int]:
    """Return a page's size, unpacked and packed, and the length of its header."""
    window = HEADER
    while True:
        file.seek(start)
        data = file.read(min(window, end - start))
        try:
            return _Compact(data).sizes()
        except IndexError:  # the header is longer
            if len(data) < window or window >= MOST_HEADER:
                raise ArrowInvalid("a page header of the Parquet file cannot be read") from None
            window *= 16


class _Compact:
    """Thrift's compact protocol, as far as needed to find two numbers and skip the rest."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def sizes(self) -> tuple[tuple[int, int], int]:
        """Return the fields 2 and 3 of a structure, which are int32, and its length. Raise IndexError."""
        found = {2: -1, 3: -1}
        for number, kind in self._fields():
            if number in found and kind == I32:
                value = self._varint()
                found[number] = value >> 1 ^ -(value & 1)
            else:
                self._skip(kind, 0)
        return (found[2], found[3]), self._at

    def _fields(self) -> Iterator[tuple[int, int]]:
        number = 0
        while (byte := self._byte()) & 15 != STOP:
            if byte >> 4:
                number += byte >> 4
            else:
                value = self._varint()
                number = value >> 1 ^ -(value & 1)
            yield number, byte & 15

    def _skip(self, kind: int, depth: int) -> None:
        if kind in (TRUE, FALSE):
            return
        if kind in (I16, I32, I64):
            self._varint()
        elif kind == BYTE:
            self._byte()
        elif kind == DOUBLE:
            self._move(8)
        elif kind == BINARY:
            self._move(self._varint())
        elif kind == STRUCT and depth < DEPTH:
            for _, inner in self._fields():
                self._skip(inner, depth + 1)
        else:  # a page header has no lists and maps
            raise ArrowInvalid("a page header of the Parquet file cannot be read")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ArrowInvalid("a page header of the Parquet file cannot be read")

    def _move(self, length: int) -> None:
        self._at += length
        if self._at > len(self._data):
            raise IndexError
