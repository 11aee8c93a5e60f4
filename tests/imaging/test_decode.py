from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from app.errors import LeukoError, RequestError, TooLarge, UndecodableImage, UnsupportedFormat
from app.imaging.decode import ACCEPTED, decode, recognise
from app.imaging.limits import ImageLimits
from tests.pictures import encode, grey_tags, picture, pixels, png, real, tiff

# --- what is accepted -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ACCEPTED)
def test_every_accepted_format_comes_out_as_rgb_of_its_size(kind: str) -> None:
    image = decode(encode(picture(), kind))
    assert (image.mode, image.size) == ("RGB", (48, 32))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    assert np.array_equal(pixels(decode(encode(picture(), kind))), pixels(picture()))


def test_jpeg_gives_the_pixels_that_pillow_gives() -> None:
    data = encode(picture(), "JPEG", quality=90)
    assert np.array_equal(pixels(decode(data)), pixels(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        b"\x00\x00\x00\x0cjP  \r\n\x87\n",
        b"\x00\x00\x01\x00\x01\x00\x10\x10",
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"<html><img src=x></html>",
        b"\x00" * 64,
        b"PK\x03\x04",
    ],
    ids=["svg", "eps", "pdf", "jp2", "ico", "wav", "html", "zeros", "zip"],
)
def test_other_formats_are_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedFormat):
        decode(data)


def test_the_format_is_told_by_the_first_bytes_alone() -> None:
    assert recognise(encode(picture(), "PNG") + b"%PDF-1.7") == "PNG"
    with pytest.raises(UnsupportedFormat):
        recognise(b"%PDF-1.7" + encode(picture(), "PNG"))


def test_an_empty_body_is_undecodable() -> None:
    with pytest.raises(UndecodableImage, match="empty"):
        decode(b"")


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_signature_cut_short_is_a_truncated_picture_of_that_format(kind: str) -> None:
    with pytest.raises(UndecodableImage):
        decode(encode(picture(), kind)[:12])


# --- sizes ------------------------------------------------------------------------------------------


def test_more_bytes_than_the_limit_are_too_large() -> None:
    data = encode(picture(), "PNG")
    decode(data, ImageLimits(max_bytes=len(data)))
    with pytest.raises(TooLarge, match="bytes"):
        decode(data, ImageLimits(max_bytes=len(data) - 1))


def test_pixels_and_sides_are_limited() -> None:
    data = encode(picture(), "PNG")
    decode(data, ImageLimits(max_pixels=48 * 32, max_side=48))
    for limits in (ImageLimits(max_pixels=48 * 32 - 1), ImageLimits(max_side=47)):
        with pytest.raises(TooLarge, match="48 by 32"):
            decode(data, limits)


@pytest.mark.parametrize("side", [6_000, 10_000, 50_000], ids=["ours", "pillow-warns", "pillow-raises"])
def test_too_many_pixels_are_refused_by_the_header(side: int) -> None:
    with pytest.raises(TooLarge):
        decode(png(side, side))


def test_pillows_bomb_warning_refuses_even_where_the_limit_is_higher() -> None:
    with pytest.raises(TooLarge):
        decode(png(10_000, 10_000), ImageLimits(max_pixels=10**9))


def test_a_jpeg_header_of_65535_squared_is_refused() -> None:
    data = encode(picture(), "JPEG")
    place = data.index(b"\xff\xc0") + 5
    with pytest.raises(TooLarge):
        decode(data[:place] + b"\xff\xff\xff\xff" + data[place + 4 :])


def test_a_picture_without_pixels_is_undecodable() -> None:
    for width, height in ((0, 0), (0, 9), (9, 0)):
        with pytest.raises(UndecodableImage):
            decode(png(width, height))


def test_a_tiff_tile_larger_than_any_picture_is_refused() -> None:
    body = zlib.compress(bytes(10_000))
    tags = {256: 9, 257: 9, 258: 8, 259: 8, 262: 1, 277: 1, 322: 20_000, 323: 20_000, 324: 8, 325: len(body)}
    with pytest.raises(TooLarge, match="tiles"):
        decode(tiff(tags, body))


def test_run_length_coded_bmp_is_refused() -> None:
    body = b"\0\0" * 100 + b"\0\1"
    header = struct.pack("<LllHHLLllLL", 40, 100, 100, 1, 8, 1, len(body), 0, 0, 256, 0)
    file = b"BM" + struct.pack("<LHHL", 14 + 40 + 1024 + len(body), 0, 0, 14 + 40 + 1024)
    with pytest.raises(UndecodableImage, match="run-length"):
        decode(file + header + bytes(1024) + body)


# --- truncated and corrupt --------------------------------------------------------------------------


def cuts(data: bytes) -> Iterator[tuple[int, Image.Image]]:
    """Yield offset and image for every offset at which `data`, cut there, decodes; else it is undecodable."""
    for end in range(1, len(data)):
        try:
            yield end, decode(data[:end])
        except UndecodableImage:
            continue


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}], ids=str
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_cut_anywhere_is_an_error_or_the_whole_picture(mode: str, options: dict[str, Any]) -> None:
    data = encode(picture().convert(mode), "JPEG", **options)
    whole = pixels(decode(data))
    for end, image in cuts(data):
        assert np.array_equal(pixels(image), whole), end


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats_cut_anywhere_are_an_error_or_the_whole_picture(kind: str) -> None:
    data = encode(picture(), kind)
    whole = pixels(decode(data))
    for end, image in cuts(data):
        assert np.array_equal(pixels(image), whole), end


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "jpeg", "zstd"])
def test_a_compressed_tiff_cut_anywhere_is_an_error_or_the_whole_picture(compression: str) -> None:
    data = encode(picture(), "TIFF", compression=compression)
    whole = pixels(decode(data))
    for end, image in cuts(data):
        assert np.array_equal(pixels(image), whole), end


def test_pillow_does_not_load_truncated_images() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", ACCEPTED)
def test_flipped_bytes_give_a_picture_or_a_named_error(kind: str) -> None:
    data = encode(picture(), kind)
    random = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(data)
        for place in random.integers(4, len(data), 4):
            broken[place] = random.integers(256)
        try:
            assert decode(bytes(broken)).mode == "RGB"
        except RequestError:
            continue


def test_errors_do_not_quote_the_file() -> None:
    data = encode(picture(), "PNG")
    for broken in (data[:60] + b"Doe^John" + data[60:], b"Doe^John", b"BMDoe^John" * 9, b"II*\0Doe^John" * 9):
        with pytest.raises(LeukoError) as caught:
            decode(broken)
        assert "Doe" not in caught.value.detail


# --- side effects -----------------------------------------------------------------------------------


def test_warnings_about_broken_metadata_are_suppressed() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = tiff(grey_tags(4, 8) | {315: 9}, bytes(16))
        artist = struct.pack("<HHL", 315, 4, 1)
        decode(data.replace(artist, struct.pack("<HHL", 315, 2, 10**6)))
    assert not caught


def test_threads_may_decode_at_once() -> None:
    data = [encode(picture(), kind) for kind in ACCEPTED] * 8
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(decode, data))
    assert all(np.array_equal(pixels(a), pixels(decode(b))) for a, b in zip(at_once, data, strict=True))


def test_the_malformed_collection_gives_pictures_or_named_errors() -> None:
    outcomes = {"RGB": 0}
    for path in filter(Path.is_file, real("malformed").rglob("*")):
        try:
            outcome = decode(path.read_bytes()).mode
        except (UnsupportedFormat, TooLarge, UndecodableImage) as error:
            outcome = error.code
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert set(outcomes) == {"RGB", "unsupported_format", "too_large", "undecodable_image"}
    assert outcomes["RGB"] > 300
