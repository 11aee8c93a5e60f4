from __future__ import annotations

import struct
import zlib

import pytest
from PIL import Image

from app.errors import TooLarge
from app.imaging.strip_metadata import MAX_PARTS, MAX_SCANS, read_orientation, strip
from tests.pictures import encode, png

PICTURE = Image.new("RGB", (16, 16), "rebeccapurple")
MARK = b"Doe^John"


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


def directory(order: str, *entries: tuple[int, int, int, int]) -> bytes:
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    packed = b"".join(struct.pack(f"{order}HHLHH", *entry, 0) for entry in entries)
    return mark + struct.pack(f"{order}LH", 8, len(entries)) + packed


@pytest.mark.parametrize("marker", [0xFE, 0xE1, 0xE2, 0xED, 0xEF])
def test_a_jpegs_comments_and_application_segments_are_dropped(marker: int) -> None:
    plain = encode(PICTURE, "JPEG")
    marked = plain[:2] + segment(marker, MARK) + plain[2:]
    assert strip(marked, "JPEG").data == plain


def test_the_segments_that_tell_a_jpegs_colours_are_kept() -> None:
    plain = encode(PICTURE.convert("CMYK"), "JPEG")
    assert b"Adobe" in plain
    assert strip(plain, "JPEG").data == plain


def test_fill_bytes_between_segments_are_skipped() -> None:
    plain = encode(PICTURE, "JPEG")
    assert strip(plain[:2] + b"\xff" * 1000 + plain[2:], "JPEG").data == plain


def test_a_jpegs_first_exif_block_is_remembered() -> None:
    plain = encode(PICTURE, "JPEG")
    blocks = [segment(0xE1, b"Exif\0\0" + directory("<", (0x0112, 3, 1, turn))) for turn in (6, 3)]
    bare = strip(plain[:2] + b"".join(blocks) + plain[2:], "JPEG")
    assert bare.data == plain
    assert read_orientation(bare.exif) == 6


def test_a_pngs_ancillary_chunks_are_dropped_and_its_exif_remembered() -> None:
    plain = encode(PICTURE, "PNG")
    extra = chunk(b"tEXt", MARK) + chunk(b"iCCP", MARK) + chunk(b"eXIf", directory(">", (0x0112, 3, 1, 8)))
    bare = strip(plain[:33] + extra + plain[33:] + MARK, "PNG")
    assert bare.data == plain
    assert read_orientation(bare.exif) == 8


def test_what_follows_the_end_of_a_png_is_dropped_however_long_it_is() -> None:
    data = png(8, 8)
    assert strip(data + bytes(12 * (MAX_PARTS + 1)), "PNG").data == strip(data, "PNG").data


def test_a_gifs_comments_are_dropped_and_its_transparency_kept() -> None:
    image = Image.new("P", (4, 4))
    plain = encode(image, "GIF", transparency=0)
    place = plain.index(b"\x21\xf9")
    assert strip(plain[:place] + b"\x21\xfe\x08" + MARK + b"\0" + plain[place:], "GIF").data == plain


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "BMP"])
def test_other_formats_are_left_as_they_are(kind: str) -> None:
    data = encode(PICTURE, kind)
    assert strip(data, kind).data is data


def test_too_many_parts_are_too_large() -> None:
    jpeg, png, gif = encode(PICTURE, "JPEG"), encode(PICTURE, "PNG"), encode(PICTURE, "GIF")
    palette_end = 13 + (6 << (gif[10] & 7))
    floods = {
        "JPEG": jpeg[:2] + segment(0xFE, b"") * MAX_PARTS + jpeg[2:],
        "PNG": png[:33] + chunk(b"abCd", b"") * MAX_PARTS + png[33:],
        "GIF": gif[:palette_end] + b"\x21\xfe\0" * MAX_PARTS + gif[palette_end:],
    }
    for kind, data in floods.items():
        with pytest.raises(TooLarge):
            strip(data, kind)


def test_a_jpeg_of_too_many_scans_is_too_large() -> None:
    plain = encode(PICTURE, "JPEG")
    scan = plain[plain.index(b"\xff\xda") : -2]
    strip(plain[:-2] + scan * (MAX_SCANS - 1) + plain[-2:], "JPEG")
    with pytest.raises(TooLarge, match="scans"):
        strip(plain[:-2] + scan * MAX_SCANS + plain[-2:], "JPEG")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_stripping_truncated_data_never_fails(kind: str) -> None:
    data = encode(PICTURE, kind)
    for end in range(len(data)):
        assert data.startswith(strip(data[:end], kind).data[:end])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_orientation_is_read_in_both_byte_orders(order: str, prefix: bytes) -> None:
    block = directory(order, (0x010F, 2, 1, 0), (0x0112, 3, 1, 5))
    assert read_orientation(prefix + block) == 5


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"II",
        b"II*\0\xff\xff\xff\xff",
        b"XX" + directory("<", (0x0112, 3, 1, 6))[2:],
        directory("<", (0x0112, 3, 1, 0)),
        directory("<", (0x0112, 3, 1, 9)),
        directory("<", (0x0110, 3, 1, 6)),
        directory("<", (0x0110, 3, 1, 6), (0x0112, 3, 1, 6))[:-6],
    ],
)
def test_an_absent_or_broken_orientation_is_upright(block: bytes) -> None:
    assert read_orientation(block) == 1
