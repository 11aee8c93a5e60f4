"""Images of which a part is missing, and files that make a decoder decode more than the image."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from app.errors import TooLarge, UndecodableImage
from app.imaging.decode import decode
from app.imaging.dicom import JPEG_2000
from app.imaging.limits import ImageLimits
from app.imaging.png import UNWRITTEN
from app.imaging.strip_metadata import MAX_SCANS
from tests.pictures import encode, picture, pixels

SMALL = ImageLimits(max_pixels=48 * 32)

# --- PNG --------------------------------------------------------------------------------------------

SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # for each colour type
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PLAIN = ((0, 0, 1, 1),)


def png_rows(size: tuple[int, int], colour: int, bits: int, interlaced: bool, value: int) -> list[bytes]:
    """Return the rows of all passes, each with its filter byte; all sample bytes are `value`."""
    rows = []
    for left, top, across, down in ADAM7 if interlaced else PLAIN:
        columns, count = len(range(left, size[0], across)), len(range(top, size[1], down))
        if columns:
            rows += [b"\0" + bytes([value]) * ((columns * SAMPLES[colour] * bits + 7) // 8)] * count
    return rows


def png_file(size: tuple[int, int], colour: int, bits: int, interlaced: bool, rows: list[bytes]) -> bytes:
    header = struct.pack(">LLBBBBB", *size, bits, colour, 0, 0, interlaced)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    if colour == 3:
        parts.insert(1, (b"PLTE", bytes(3 * min(256, 1 << bits))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))
        for name, body in parts
    )


@pytest.mark.parametrize("value", [0, 90, UNWRITTEN, 255])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour", "bits"),
    [(0, 1), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 2), (3, 8), (4, 8), (6, 8), (6, 16)],
)
def test_a_png_with_fewer_rows_than_its_header_says_is_refused(
    colour: int, bits: int, interlaced: bool, value: int
) -> None:
    for size in ((9, 6), (9, 7), (8, 1), (9, 1), (2, 1), (1, 5), (1, 1)):
        rows = png_rows(size, colour, bits, interlaced, value)
        assert decode(png_file(size, colour, bits, interlaced, rows)).size == size
        for kept in {len(rows) - 1, len(rows) // 2, 0} - {len(rows)}:
            with pytest.raises(UndecodableImage):
                decode(png_file(size, colour, bits, interlaced, rows[:kept]))


def test_a_png_whose_last_row_is_like_the_mark_keeps_its_pixels() -> None:
    for value in ((UNWRITTEN, 0, 0), (UNWRITTEN,) * 3, (0, 0, 0)):
        image = picture()
        image.paste(value, (0, 31, 48, 32))
        assert np.array_equal(pixels(decode(encode(image, "PNG"))), pixels(image))


# --- TIFF -------------------------------------------------------------------------------------------


def tiff_file(tags: list[tuple[int, list[int]]], body: bytes) -> bytes:
    """Return a TIFF in which `body` starts at byte 8. tags: numbers and LONGs."""
    entries, tables, end = b"", b"", 8 + len(body)
    for tag, values in sorted(tags, key=lambda entry: entry[0]):
        value = values[0] if len(values) == 1 else end + len(tables)
        tables += struct.pack(f"<{len(values)}L", *values) if len(values) > 1 else b""
        entries += struct.pack("<HHLL", tag, 4, len(values), value)
    head = b"II*\0" + struct.pack("<L", end + len(tables))
    return head + body + tables + struct.pack("<H", len(tags)) + entries + bytes(4)


def parted(kept: int, *, tiled: bool = False, planes: int = 1) -> bytes:
    """Return a grey or RGB image of 48 by 32 with all but the first `kept` of its parts in its tables."""
    width, height = (16, 16) if tiled else (48, 8)
    offsets = [8 + part * width * height for part in range(kept)]
    layout = {322: [16], 323: [16]} if tiled else {278: [8]}
    where = (324, 325) if tiled else (273, 279)
    tags = {256: [48], 257: [32], 258: [8] * planes, 259: [1], 262: [2 if planes > 1 else 1], 277: [planes]}
    tags |= {284: [2 if planes > 1 else 1], where[0]: offsets, where[1]: [width * height] * kept} | layout
    return tiff_file(list(tags.items()), bytes([200]) * (48 * 32 * planes))


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize(("tiled", "parts"), [(False, 4), (True, 6)])
def test_a_tiff_with_fewer_strips_or_tiles_than_its_size_needs_is_refused(
    tiled: bool, parts: int, planes: int
) -> None:
    assert pixels(decode(parted(parts * planes, tiled=tiled, planes=planes))).min() == 200
    for kept in (1, parts * planes - 1):
        with pytest.raises(UndecodableImage, match="strips or tiles"):
            decode(parted(kept, tiled=tiled, planes=planes))


def test_an_uncompressed_tiff_with_a_strip_that_is_nowhere_is_refused() -> None:
    data = parted(4).replace(struct.pack("<L", 8 + 3 * 48 * 8), bytes(4))
    with pytest.raises(UndecodableImage, match="strips or tiles"):
        decode(data)


def test_tiles_that_cover_many_times_the_image_are_refused_by_the_header() -> None:
    block = zlib.compress(bytes(1_562_496 * 16), 9)
    tags = [(256, [16]), (257, [96]), (258, [8]), (259, [8]), (262, [1]), (277, [1])]
    tags += [(322, [1_562_496]), (323, [16]), (324, [8] * 6), (325, [len(block)] * 6)]
    with pytest.raises(TooLarge, match="tiles"):
        decode(tiff_file(tags, block))


def test_padding_of_tiles_at_the_edges_is_no_part_of_the_limit() -> None:
    block = zlib.compress(bytes(256))
    tags = [(256, [48]), (257, [33]), (258, [8]), (259, [8]), (262, [1]), (277, [1])]
    tags += [(322, [16]), (323, [16]), (324, [8] * 9), (325, [len(block)] * 9)]
    assert decode(tiff_file(tags, block), ImageLimits(max_pixels=48 * 33)).size == (48, 33)


def test_strips_beyond_those_of_the_image_are_not_read() -> None:
    assert np.array_equal(pixels(decode(parted(9), SMALL)), pixels(decode(parted(4))))


def test_a_tag_that_occurs_twice_is_refused() -> None:
    # libtiff would decode tiles of 20,000 by 16, Pillow reads that they are 16 by 16.
    block = zlib.compress(bytes(20_000 * 16))
    tags = [(256, [16]), (257, [16]), (258, [8]), (259, [8]), (262, [1]), (277, [1])]
    tags += [(322, [20_000]), (322, [16]), (323, [16]), (324, [8]), (325, [len(block)])]
    with pytest.raises(UndecodableImage, match="twice"):
        decode(tiff_file(tags, block), SMALL)


def test_a_size_of_another_integer_type_counts_as_well() -> None:
    block = zlib.compress(bytes(20_000 * 16))
    tags = [(256, [16]), (257, [16]), (258, [8]), (259, [8]), (262, [1]), (277, [1])]
    tags += [(322, [8 + len(block)]), (323, [16]), (324, [8]), (325, [len(block)])]
    data = tiff_file(tags, block + struct.pack("<Q", 20_000))
    with pytest.raises(TooLarge, match="tiles"):
        decode(data.replace(struct.pack("<HH", 322, 4), struct.pack("<HH", 322, 17)), SMALL)
    with pytest.raises(UndecodableImage, match="type"):
        decode(data.replace(struct.pack("<HH", 322, 4), struct.pack("<HH", 322, 99)), SMALL)


def test_strips_beside_tiles_are_refused() -> None:
    data = parted(4).replace(struct.pack("<HH", 284, 4), struct.pack("<HH", 325, 4))
    with pytest.raises(UndecodableImage, match="both"):
        decode(data)


def jpegs_in_a_tiff(*jpegs: bytes, shared: int = 1) -> bytes:
    """Return a grey TIFF with strips of 48 by 32, each a JPEG. shared: how often all are listed."""
    offsets = [8 + sum(map(len, jpegs[:part])) for part in range(len(jpegs))] * shared
    lengths = [len(jpeg) for jpeg in jpegs] * shared
    tags = [(256, [48]), (257, [32 * len(offsets)]), (258, [8]), (259, [7]), (262, [1]), (277, [1])]
    return tiff_file([*tags, (273, offsets), (278, [32]), (279, lengths)], b"".join(jpegs))


def test_each_jpeg_in_a_tiff_must_have_its_end() -> None:
    jpeg = encode(picture().convert("L"), "JPEG")
    assert decode(jpegs_in_a_tiff(jpeg, jpeg)).size == (48, 64)
    for cut in (len(jpeg) // 2, len(jpeg) - 2):
        with pytest.raises(UndecodableImage):
            decode(jpegs_in_a_tiff(jpeg, jpeg[:cut]))


def test_each_jpeg_in_a_tiff_must_have_the_rows_of_its_strip() -> None:
    jpeg = encode(picture().convert("L"), "JPEG")
    low, narrow = (encode(picture(*size).convert("L"), "JPEG") for size in ((48, 16), (32, 32)))
    for wrong in (low, narrow):
        with pytest.raises(UndecodableImage):
            decode(jpegs_in_a_tiff(jpeg, wrong, jpeg))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_in_a_tiff_of_any_height_are_whole(mode: str) -> None:
    for height in (1, 8, 33, 500):
        image = picture(301, height).convert(mode)
        data = encode(image, "TIFF", compression="jpeg", strip_size=16 * 301 * len(mode))
        assert decode(data).size == (301, height)


def test_each_jpeg_in_a_tiff_has_the_limit_of_scans_of_a_jpeg() -> None:
    jpeg = encode(picture().convert("L"), "JPEG", progressive=True)
    decode(jpegs_in_a_tiff(jpeg))
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    with pytest.raises(TooLarge, match="scans"):
        decode(jpegs_in_a_tiff(jpeg, jpeg[:-2] + last * MAX_SCANS + b"\xff\xd9"))


def test_jpegs_in_a_tiff_that_share_bytes_count_as_often_as_they_are_decoded() -> None:
    data = jpegs_in_a_tiff(encode(picture().convert("L"), "JPEG"), shared=20)
    assert decode(data).size == (48, 640)
    with pytest.raises(TooLarge, match="strips"):
        decode(data, ImageLimits(max_bytes=len(data)))


# --- JPEG 2000 in DICOM -----------------------------------------------------------------------------


def test_a_jpeg_2000_frame_without_some_of_its_tiles_is_refused() -> None:
    pytest.importorskip("pydicom")
    from pydicom import dcmread
    from pydicom.encaps import encapsulate

    from app.imaging import dicom_writer

    def dicom(frame: bytes) -> bytes:
        dataset = dcmread(io.BytesIO(dicom_writer.write(picture(), JPEG_2000)))
        dataset.PixelData = encapsulate([frame])
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        return file.getvalue()

    frame = encode(picture(), "JPEG2000", no_jp2=True, tile_size=(16, 16))
    assert decode(dicom(frame)).size == (48, 32)
    start = frame.index(b"\xff\x90\x00\x0a\x00\x05")  # the last of 6 tiles
    with pytest.raises(UndecodableImage, match="tiles"):
        decode(dicom(frame[:start] + b"\xff\xd9"))


@pytest.mark.parametrize(
    ("kind", "place", "layout"), [("BMP", 22, "<L"), ("GIF", b",\0\0\0\0", "<H"), ("WEBP", 28, "<H")]
)
def test_other_formats_with_fewer_rows_than_their_header_says_are_refused(
    kind: str, place: int | bytes, layout: str
) -> None:
    data = bytearray(encode(picture(), kind))
    place = place if isinstance(place, int) else data.index(place) + 7
    struct.pack_into(layout, data, place, 64)
    with pytest.raises(UndecodableImage):
        decode(bytes(data))


def test_an_image_of_one_pixel_is_whole() -> None:
    assert decode(encode(Image.new("RGB", (1, 1)), "PNG")).size == (1, 1)
