"""Headers of pages that no program writes; tests/safety/test_bulk.py has whole files."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from pyarrow import ArrowInvalid

from app.bulk.parquet_pages import largest_page
from app.units import MIB

# Of Thrift's compact protocol: the type of a field, after how many field numbers it follows, its value.
I32, BINARY, STRUCT, STOP = b"\x15", b"\x18", b"\x1c", b"\0"
KIND = I32 + b"\0"  # field 1


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def sizes(unpacked: int, packed: int) -> bytes:
    """Return the fields 2 and 3; zigzag: a negative number is odd."""
    return b"".join(I32 + varint(2 * value if value >= 0 else -2 * value - 1) for value in (unpacked, packed))


def largest(data: bytes) -> int:
    column = SimpleNamespace(data_page_offset=0, has_dictionary_page=False, total_compressed_size=len(data))
    return largest_page(io.BytesIO(data), column)


def test_the_largest_page_is_found_packed_or_not() -> None:
    pages = [KIND + sizes(*size) + STOP + bytes(size[1]) for size in ((5, 3), (900, 7), (4, 1000))]
    assert largest(pages[0]) == 5
    assert largest(b"".join(pages[:2])) == 900
    assert largest(b"".join(pages)) == 1000


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("size", [(-1, 1), (1, -7)])
def test_a_negative_size_is_refused_and_leads_to_no_page_again(size: tuple[int, int]) -> None:
    header = KIND + sizes(*size) + STOP
    assert len(header) == 7
    with pytest.raises(ArrowInvalid, match="negative size"):
        largest(header + b"\0")


def test_a_header_has_a_limit() -> None:
    value = 40 * MIB
    header = KIND + sizes(1, 1) + BINARY + varint(value) + bytes(value) + STOP + b"\0"
    with pytest.raises(ArrowInvalid, match="cannot be read"):
        largest(header)


@pytest.mark.parametrize("data", [KIND, KIND + I32, KIND + sizes(1, 1), BINARY + varint(9) + b"a"])
def test_a_header_that_is_cut_is_refused(data: bytes) -> None:
    with pytest.raises(ArrowInvalid, match="cannot be read"):
        largest(data)


def test_structures_within_structures_are_refused() -> None:
    with pytest.raises(ArrowInvalid, match="cannot be read"):
        largest(STRUCT * 5000)


@pytest.mark.usefixtures("bounded")
def test_a_number_without_end_is_refused_at_once() -> None:
    with pytest.raises(ArrowInvalid, match="cannot be read"):
        largest(I32 + b"\xff" * 40 * MIB)
